"""Adagrad: each coordinate divided by the root of its sum of squares (Duchi et al. 2011)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import NonNegative, Rate, checked
from .._numerics import abs_square, bounded, divide, plus
from .._types import Rule, Updates
from ..leafwise import Stage, constant, joined, lift
from ._registry import rule
from .learning_rate import scale_by_learning_rate

__all__ = ["adagrad", "scale_by_adagrad"]

_TERMS = 2**20  # largest squares that the sum holds before it saturates


class ScaleByAdagradState(NamedTuple):
    """State of Adagrad."""

    sum_of_squares: Updates  # of all gradients so far, float32, shapes of the parameters


@checked
def scale_by_adagrad(
    initial_accumulator_value: NonNegative = 0.1, eps: NonNegative = 1e-7, *, eps_in_sqrt: bool = True
) -> Rule:
    r"""The direction of Adagrad.

    $$s_t = s_{t-1} + g_t^2, \qquad u_t = g_t / \sqrt{s_t + \epsilon}$$

    Args:
      initial_accumulator_value: $s_0 \ge 0$, in squared units of the gradient.
      eps: $\epsilon \ge 0$, inside the root; a coordinate whose sum is 0 moves by 0.
      eps_in_sqrt: $\sqrt{s + \epsilon}$, else $\sqrt{s} + \epsilon$ (PyTorch).

    Raises:
      ValueError: a value is negative or not finite.

    Source: Duchi, Hazan and Singer 2011, JMLR 12, figure 1 (diagonal).
    """

    def step(shared: Any, g: Array, p: Any, kept: ScaleByAdagradState) -> tuple[Array, Any]:
        del shared, p
        g = bounded(g, _TERMS)
        total = kept.sum_of_squares + abs_square(g)
        total = jnp.minimum(total, jnp.finfo(total.dtype).max)  # a sum that overflowed stays usable
        if eps_in_sqrt:
            update = divide(g, jnp.sqrt(plus(total, eps)))
        else:
            update = divide(g, plus(jnp.sqrt(total), eps), eps)
        return jnp.where(total == 0, jnp.zeros((), g.dtype), update), ScaleByAdagradState(total)

    state = ScaleByAdagradState(constant(initial_accumulator_value, real=True))
    return lift("scale_by_adagrad", Stage(step, state), chained=False)


@rule
def adagrad(
    learning_rate: Rate,
    initial_accumulator_value: NonNegative = 0.1,
    eps: NonNegative = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> Rule:
    r"""Adagrad, for sparse and ill-scaled gradients.

    $$s_t = s_{t-1} + g_t^2, \qquad \theta_{t+1} = \theta_t - \eta_t g_t / \sqrt{s_t + \epsilon}$$

    The sum never shrinks, so that steps become smaller like $1/\sqrt{t}$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      initial_accumulator_value: $s_0 \ge 0$, in squared units of the gradient.
      eps: $\epsilon \ge 0$, inside the root; a coordinate whose sum is 0 moves by 0.
      eps_in_sqrt: $\sqrt{s + \epsilon}$, else $\sqrt{s} + \epsilon$ (PyTorch).

    Returns:
      The rule; its state holds `sum_of_squares`.

    Raises:
      ValueError: a value is negative or not finite.
      TypeError: a value is not a number.

    Source: Duchi, Hazan and Singer 2011, JMLR 12, figure 1 (diagonal).

    >>> rule = jl.adagrad(1.0, initial_accumulator_value=0.0, eps=0.0)
    >>> updates, state = rule.update(jnp.float32(3.0), rule.init(jnp.float32(0.0)))
    >>> float(updates), float(state[0].sum_of_squares)
    (-1.0, 9.0)
    """
    direction = scale_by_adagrad(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt)
    return joined("adagrad", direction, scale_by_learning_rate(learning_rate))
