"""Adam and AdamW: momentum over root mean square (Kingma, Ba 2015; Loshchilov, Hutter 2019)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, Mask, NonNegative, Rate, StateDtype, checked
from .._numerics import abs_square, as_decay, bounded, divide, ema, plus
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, zeros
from ._momentum import Corrections, corrections, unbiased
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["adam", "adamw", "scale_by_adam", "scale_by_adamw"]


class ScaleByAdamState(NamedTuple):
    """State of Adam."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient, float32, shapes of the parameters


@checked
def scale_by_adam(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""The direction of Adam, see `adam`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleByAdamState) -> Corrections:
        return corrections(kept.count, d1, d2, nesterov)

    def step(shared: Corrections, g: Array, p: Any, kept: ScaleByAdamState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        mu = ema(kept.mu, g, d1)
        nu = ema(kept.nu, abs_square(g), d2)
        mu_hat = unbiased(mu, g, d1, shared.mu, shared.next_mu)
        root = jnp.sqrt(plus(nu / shared.nu, eps_root))
        return divide(mu_hat, plus(root, eps), eps), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count=count(), mu=zeros(mu_dtype), nu=zeros(real=True))
    return lift("scale_by_adam", Stage(step, state, shared), chained=False)


@checked
def scale_by_adamw(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""The direction of AdamW, weight decay included, see `adamw`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return joined("scale_by_adamw", direction, add_decayed_weights(weight_decay, mask))


@rule
def adam(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""Adam.

    $$\mu_t = b_1 \mu_{t-1} + (1-b_1) g_t, \qquad \nu_t = b_2 \nu_{t-1} + (1-b_2) g_t^2$$
    $$\hat\mu_t = \mu_t / (1-b_1^t), \qquad \hat\nu_t = \nu_t / (1-b_2^t)$$
    $$\theta_{t+1} = \theta_t - \eta_t \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon} + \epsilon)$$

    With `nesterov` (NAdam),
    $\hat\mu_t = b_1 \mu_t / (1-b_1^{t+1}) + (1-b_1) g_t / (1-b_1^t)$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root, for differentiating through the step.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      nesterov: Nesterov momentum.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range, or the dtype is not a floating one.
      TypeError: a value is not a number.

    Source: Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Dozat 2016 for `nesterov`.

    >>> rule = jl.adam(0.5, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(1e-12), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 6)  # the first step has the size of the learning rate
    -0.5
    """
    direction = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return joined("adam", direction, scale_by_learning_rate(learning_rate))


@rule
def adamw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
) -> Rule:
    r"""Adam with decoupled weight decay.

    $$\theta_{t+1} = \theta_t - \eta_t \left( \hat\mu_t / (\sqrt{\hat\nu_t + \bar\epsilon}
      + \epsilon) + \lambda_t \theta_t \right)$$

    with $\hat\mu$ and $\hat\nu$ as in `adam`. The sum is formed in float32 and rounded once: in
    bfloat16 the decay would vanish beside the direction.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; multiplied by it, as in PyTorch and optax.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.
      nesterov: Nesterov momentum.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range, or the dtype is not a floating one.
      TypeError: a value is not a number.

    Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.

    >>> rule = jl.adamw(0.5, weight_decay=0.1)
    >>> params = jnp.float32(2.0)
    >>> updates, state = rule.update(jnp.float32(0.0), rule.init(params), params)
    >>> round(float(updates), 6)  # no gradient: decay only
    -0.1
    """
    direction = scale_by_adamw(b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=nesterov)
    return joined("adamw", direction, scale_by_learning_rate(learning_rate))
