"""MADGRAD: dual averaging with momentum (Defazio and Jelassi 2021)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import Decay, Mask, NonNegative, Rate, checked
from .._numerics import (
    abs_square,
    as_decay,
    as_scalar,
    bounded,
    complement,
    divide,
    like,
    plus,
    safe_increment,
    scalar_dtype,
    times,
)
from .._types import Rule, Updates
from ..leafwise import Stage, count, first_parameters, joined, lift, zeros
from ._registry import rule
from .learning_rate import checked_rate
from .weight_decay import decay_of

__all__ = ["madgrad", "scale_by_madgrad"]

_TERMS = 2**20  # largest squares that the sum holds before it saturates


class MadgradState(NamedTuple):
    """State of MADGRAD."""

    count: Int[Array, ""]  # steps taken
    grad_sum_sq: Updates  # weighted sum of squared gradients, float32, shapes of the parameters
    s: Updates  # weighted sum of gradients, float32, shapes of the parameters
    x0: Updates  # the first parameters, float32


@checked
def scale_by_madgrad(learning_rate: Rate, momentum: Decay = 0.9, eps: NonNegative = 1e-6) -> Rule:
    r"""The whole step of MADGRAD, see `madgrad`.

    Raises:
      ValueError: a value is out of range.
    """
    d = as_decay(momentum)

    def weight(kept: MadgradState) -> Array:
        rate = checked_rate("scale_by_madgrad", learning_rate, kept.count)
        return (rate + as_scalar(eps)) * jnp.sqrt(safe_increment(kept.count).astype(scalar_dtype()))

    def step(weight: Array, g: Array, p: Array, kept: MadgradState) -> tuple[Array, Any]:
        g = bounded(g, _TERMS)
        squares = kept.grad_sum_sq + weight * abs_square(g)
        squares = jnp.minimum(squares, jnp.finfo(squares.dtype).max)
        s = kept.s + times(weight, g)
        z = kept.x0 - divide(s, plus(jnp.cbrt(squares), eps), eps)
        return times(complement(like(d, g)), z - p), kept._replace(grad_sum_sq=squares, s=s)

    state = MadgradState(count(), zeros(real=True), zeros(), first_parameters())
    return lift("scale_by_madgrad", Stage(step, state, weight, needs_params=True), chained=False)


@rule
def madgrad(
    learning_rate: Rate,
    momentum: Decay = 0.9,
    weight_decay: Rate = 0.0,
    eps: NonNegative = 1e-6,
    *,
    mask: Mask = None,
) -> Rule:
    r"""MADGRAD: steps from the first parameters by a weighted sum of all gradients.

    With $t$ steps taken before, $w_t = (\eta_t + \epsilon) \sqrt{t+1}$:

    $$\nu_{t+1} = \nu_t + w_t g_t^2, \qquad s_{t+1} = s_t + w_t g_t, \qquad
      z_{t+1} = \theta_0 - s_{t+1} / (\nu_{t+1}^{1/3} + \epsilon), \qquad
      \theta_{t+1} = \mu \theta_t + (1-\mu) z_{t+1}$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      momentum: $\mu$ in [0, 1).
      weight_decay: a number >= 0 or a schedule; times the parameter it is added to the gradient.
      eps: $\epsilon \ge 0$.
      mask: which leaves decay, see `adamw`.

    Returns:
      The rule; its `update` needs `params`; its state holds `count`, `grad_sum_sq`, `s` and `x0`.

    Raises:
      ValueError: a value is out of range.
      TypeError: a value is not a number.

    Source: Defazio and Jelassi 2021, arXiv:2101.11075, algorithm 1.

    >>> rule, params = jl.madgrad(1.0, momentum=0.0, eps=0.0), jnp.float32(2.0)
    >>> updates, state = rule.update(jnp.float32(8.0), rule.init(params), params)
    >>> round(float(updates), 4)  # 8 / 64 ** (1 / 3)
    -2.0
    """
    return joined("madgrad", *decay_of(weight_decay, mask), scale_by_madgrad(learning_rate, momentum, eps))
