"""LaProp: momentum of normalized gradients (Ziyin, Wang and Ueda 2020)."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import Decay, Mask, NonNegative, Rate, StateDtype, checked
from .._numerics import (
    abs_square,
    as_decay,
    bias_corrections,
    bounded,
    divide,
    ema,
    over,
    plus,
)
from .._types import Rule
from ..leafwise import Stage, count, joined, lift, zeros
from ._registry import rule
from .adam import ScaleByAdamState
from .learning_rate import scale_by_learning_rate
from .weight_decay import decay_of

__all__ = ["laprop", "scale_by_laprop"]


@checked
def scale_by_laprop(
    b1: Decay = 0.9, b2: Decay = 0.999, eps: NonNegative = 1e-15, mu_dtype: StateDtype = None
) -> Rule:
    r"""The direction of LaProp, see `laprop`.

    Raises:
      ValueError: b1 or b2 is outside [0, 1), eps is negative, or the dtype not floating.
    """
    d1, d2 = as_decay(b1), as_decay(b2)

    def corrections(kept: ScaleByAdamState) -> tuple[Array, ...]:
        return bias_corrections(kept.count, d1, d2)

    def step(shared: tuple[Array, ...], g: Array, p: Any, kept: ScaleByAdamState) -> tuple[Array, Any]:
        del p
        g = bounded(g)
        nu = ema(kept.nu, abs_square(g), d2)
        normalized = divide(g, plus(jnp.sqrt(nu / shared[1]), eps), eps)
        mu = ema(kept.mu, normalized, d1)
        return over(mu, shared[0]), kept._replace(mu=mu, nu=nu)

    state = ScaleByAdamState(count=count(), mu=zeros(mu_dtype), nu=zeros(real=True))
    return lift("scale_by_laprop", Stage(step, state, corrections), chained=False)


@rule
def laprop(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-15,
    mu_dtype: StateDtype = None,
    weight_decay: Rate = 0.0,
    mask: Mask = None,
) -> Rule:
    r"""LaProp: Adam with the root taken before the mean.

    $$\nu_t = b_2 \nu_{t-1} + (1-b_2) g_t^2, \qquad
      \mu_t = b_1 \mu_{t-1} + (1-b_1) \frac{g_t}{\sqrt{\nu_t/(1-b_2^t)} + \epsilon}, \qquad
      \theta_{t+1} = \theta_t - \eta_t \left( \mu_t / (1-b_1^t) + \lambda_t \theta_t \right)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1), decay of the mean normalized gradient.
      b2: $b_2$ in [0, 1), decay of the mean square.
      eps: $\epsilon \ge 0$, outside the root; a coordinate whose denominator is 0 moves by 0.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      weight_decay: $\lambda$, like the learning rate; decoupled, and multiplied by it.
      mask: which leaves decay: a glob over their paths, a tree of booleans, a prefix of one, or a function
        from the parameters to one of these; all of them by default.

    Returns:
      The rule; its state holds `count`, `mu` and `nu`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Ziyin, Wang and Ueda 2020, arXiv:2002.04839, algorithm 1, with a constant rate.

    >>> rule = jl.laprop(0.5)
    >>> updates, state = rule.update(jnp.float32(1e-3), rule.init(jnp.float32(0.0)))
    >>> round(float(updates), 6)
    -0.5
    """
    direction = scale_by_laprop(b1, b2, eps, mu_dtype)
    return joined("laprop", direction, *decay_of(weight_decay, mask), scale_by_learning_rate(learning_rate))
