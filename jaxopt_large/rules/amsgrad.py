"""AMSGrad: Adam whose mean square never shrinks (Reddi, Kale and Kumar 2018)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, Mask, NonNegative, Rate, StateDtype, checked
from .._numerics import abs_square, as_decay, bounded, divide, ema, over, plus, safe_increment
from .._numerics import bias_correction as _correction
from .._types import Rule, Updates
from ..leafwise import Stage, count, joined, lift, zeros
from ._registry import rule
from .learning_rate import scale_by_learning_rate
from .weight_decay import add_decayed_weights

__all__ = ["amsgrad", "amsgradw", "scale_by_amsgrad"]


class ScaleByAmsgradState(NamedTuple):
    """State of AMSGrad."""

    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient, float32, shapes of the parameters
    nu_max: Updates  # the largest so far, float32, shapes of the parameters


@checked
def scale_by_amsgrad(
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    corrected_last: bool = False,
) -> Rule:
    r"""The direction of AMSGrad, see `amsgrad`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), another value negative, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def corrections(kept: ScaleByAmsgradState) -> tuple[Any, Any]:
        n = safe_increment(kept.count)
        return (
            _correction(d1, n) if bias_correction_mu else None,
            _correction(d2, n) if bias_correction_nu else None,
        )

    def step(shared: tuple[Any, Any], g: Array, p: Any, kept: ScaleByAmsgradState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        mu, nu = ema(kept.mu, g, d1), ema(kept.nu, abs_square(g), d2)
        first = shared[1] is not None and not corrected_last
        largest = jnp.maximum(kept.nu_max, nu / shared[1] if first else nu)
        spread = largest / shared[1] if shared[1] is not None and corrected_last else largest
        mu_hat = mu if shared[0] is None else over(mu, shared[0])
        root = jnp.sqrt(plus(spread, eps_root))
        return divide(mu_hat, plus(root, eps), eps), kept._replace(mu=mu, nu=nu, nu_max=largest)

    state = ScaleByAmsgradState(count(), zeros(mu_dtype), zeros(real=True), zeros(real=True))
    return lift("scale_by_amsgrad", Stage(step, state, corrections), chained=False)


@rule
def amsgrad(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    corrected_last: bool = False,
) -> Rule:
    r"""AMSGrad: Adam, divided by the largest mean square so far.

    $$\bar\nu_t = \max(\bar\nu_{t-1}, \hat\nu_t), \qquad
      \theta_{t+1} = \theta_t - \eta_t \hat\mu_t / (\sqrt{\bar\nu_t + \bar\epsilon} + \epsilon)$$

    with the means as in `adam`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      eps_root: $\bar\epsilon \ge 0$, inside the root.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      bias_correction_mu: divide the mean gradient by $1 - b_1^t$; the paper does not.
      bias_correction_nu: divide the mean square by $1 - b_2^t$; the paper does not.
      corrected_last: correct the largest mean square instead of taking the largest of corrected ones:
        $\max(\bar\nu, \nu_t) / (1-b_2^t)$, as in PyTorch.

    Returns:
      The rule; its state holds `count`, `mu`, `nu` and `nu_max`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Differs: the means are corrected, as in PyTorch and optax and not in the paper.

    Source: Reddi, Kale and Kumar 2018, "On the convergence of Adam and beyond", algorithm 2.

    >>> rule = jl.amsgrad(0.5, b1=0.0, b2=0.0, eps=0.0)
    >>> _, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(0.0)))
    >>> updates, state = rule.update(jnp.float32(1.0), state)
    >>> float(updates)
    -0.25
    """
    direction = scale_by_amsgrad(
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        bias_correction_mu,
        bias_correction_nu,
        corrected_last=corrected_last,
    )
    return joined("amsgrad", direction, scale_by_learning_rate(learning_rate))


@rule
def amsgradw(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    eps_root: NonNegative = 0.0,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 1e-4,
    mask: Mask = None,
    *,
    corrected_last: bool = False,
) -> Rule:
    r"""AMSGrad with decoupled weight decay.

    $$\theta_{t+1} = \theta_t - \eta_t \left( \hat\mu_t / (\sqrt{\bar\nu_t + \bar\epsilon}
      + \epsilon) + \lambda_t \theta_t \right)$$

    with $\hat\mu$ and $\bar\nu$ as in `amsgrad`.

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
      corrected_last: as in `amsgrad`.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `mu`, `nu` and `nu_max`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Reddi, Kale and Kumar 2018, algorithm 2; Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    direction = scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, corrected_last=corrected_last)
    decay = add_decayed_weights(weight_decay, mask)
    return joined("amsgradw", direction, decay, scale_by_learning_rate(learning_rate))
