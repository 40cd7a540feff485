"""NAdam: Adam with Nesterov momentum (Dozat 2016)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._hyperparameters import Decay, Mask, NonNegative, Rate, StateDtype, checked
from .._numerics import (
    abs_square,
    as_decay,
    as_scalar,
    bias_correction,
    bounded,
    divide,
    ema,
    plus,
    safe_increment,
    scalar_dtype,
    times,
)
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, shared, zeros
from ._registry import rule
from .adam import scale_by_adam
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["nadam", "nadamw", "scale_by_nadam"]

_WARM_UP = 0.96  # Dozat 2016, section 2: it begins with half of b1


class ScaleByNadamState(NamedTuple):
    """State of NAdam with a momentum that warms up."""

    count: Int[Array, ""]  # steps taken
    mu_product: Float[Array, ""]  # of the momenta of all steps
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient, float32, shapes of the parameters


class _Weights(NamedTuple):
    """Of the mean and of the gradient in the direction, and the correction of the mean square."""

    mu: Array
    g: Array
    nu: Array


@checked
def scale_by_nadam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
    momentum_decay: NonNegative | None = None,
) -> Rule:
    r"""The direction of NAdam, see `nadam`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    if momentum_decay is None or not nesterov:
        return scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    d1, d2 = as_decay(b1), as_decay(b2)

    def momentum(n: Array) -> Array:
        t = n.astype(scalar_dtype()) * as_scalar(momentum_decay)
        return as_scalar(b1) * (1.0 - 0.5 * jnp.exp(t * jnp.log(as_scalar(_WARM_UP))))

    def weights(kept: ScaleByNadamState) -> _Weights:
        n = safe_increment(kept.count)
        now, following = momentum(n), momentum(safe_increment(n))
        product = kept.mu_product * now
        return _Weights(
            following / (1.0 - product * following), (1.0 - now) / (1.0 - product), bias_correction(d2, n)
        )

    def step(weights: _Weights, g: Array, p: Any, kept: ScaleByNadamState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        mu, nu = ema(kept.mu, g, d1), ema(kept.nu, abs_square(g), d2)
        ahead = times(weights.mu, mu) + times(weights.g, g)
        root = jnp.sqrt(plus(nu / weights.nu, eps_root))
        return divide(ahead, plus(root, eps), eps), kept._replace(mu=mu, nu=nu)

    product = shared(1.0, next=lambda x, kept: x * momentum(safe_increment(kept.count)))
    state = ScaleByNadamState(count(), product, zeros(mu_dtype), zeros(real=True))
    return lift("scale_by_nadam", Stage(step, state, weights), chained=False)


@rule
def nadam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
    momentum_decay: NonNegative | None = None,
) -> Rule:
    r"""NAdam: Adam with Nesterov momentum.

    $$\hat\mu_t = b_1 \mu_t / (1-b_1^{t+1}) + (1-b_1) g_t / (1-b_1^t), \qquad
      \theta_{t+1} = \theta_t - \eta_t \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon)$$

    with $\mu$, $\nu$ and $\hat\nu$ as in `adam`. With `momentum_decay` $\psi$ the momentum warms up,
    $m_t = b_1 (1 - 0.96^{t \psi} / 2)$, as in PyTorch (where $\psi$ is 0.004):

    $$\hat\mu_t = m_{t+1} \mu_t / (1 - \prod_{i \le t+1} m_i) + (1-m_t) g_t / (1 - \prod_{i \le t} m_i)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: Nesterov momentum; without it this is `adam`.
      momentum_decay: $\psi \ge 0$; None for a momentum that is $b_1$ throughout, as in optax.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`, and `mu_product` with `momentum_decay`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Dozat 2016, "Incorporating Nesterov momentum into Adam".

    >>> rule = jl.nadam(0.5, b1=0.5, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(1.0), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 4)  # 0.5 * (0.5 * 0.5 / 0.75 + 0.5 / 0.5)
    -0.6667
    """
    direction = scale_by_nadam(
        b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, momentum_decay=momentum_decay
    )
    return joined("nadam", direction, scale_by_learning_rate(learning_rate))


@rule
def nadamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = True,
    momentum_decay: NonNegative | None = None,
) -> Rule:
    r"""NAdam with decoupled weight decay.

    $$\theta_{t+1} = \theta_t - \eta_t \left( \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon}
      + \epsilon) + \lambda_t \theta_t \right)$$

    with $\hat\mu$ and $\hat\nu$ as in `nadam`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      nesterov: Nesterov momentum; without it this is `adamw`.
      momentum_decay: $\psi \ge 0$; None for a momentum that is $b_1$ throughout, as in optax.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Dozat 2016; Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2, for the decay.
    """
    direction = scale_by_nadam(
        b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, momentum_decay=momentum_decay
    )
    decay = add_decayed_weights(weight_decay, mask)
    return joined("nadamw", direction, decay, scale_by_learning_rate(learning_rate))
