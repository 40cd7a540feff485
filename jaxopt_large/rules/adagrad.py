"""Adagrad: each coordinate divided by the root of its sum of squares (Duchi et al. 2011)."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import NON_NEGATIVE, RATE, Range, check_hyperparameters
from .._initial import constant
from .._leafwise import Fields, Scalars, Stage, lift
from .._numerics import abs_square, bounded, divide, plus
from .._types import Rule, Scalar, ScalarOrSchedule, Updates
from ._stages import learning_rate_stage

_TERMS = 2**20  # largest squares that the sum holds before it saturates


class ScaleByAdagradState(NamedTuple):
    """State of Adagrad."""

    sum_of_squares: Updates  # of all gradients so far, float32, shapes of the parameters


def scale_by_adagrad(initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7) -> Rule:
    r"""The direction of Adagrad.

    $$s_t = s_{t-1} + g_t^2, \qquad u_t = g_t / \sqrt{s_t + \epsilon}$$

    Args:
      initial_accumulator_value: $s_0 \ge 0$, in squared units of the gradient.
      eps: $\epsilon \ge 0$, inside the root; a coordinate whose sum is 0 moves by 0.

    Raises:
      ValueError: a value is negative or not finite.

    Source: Duchi, Hazan and Singer 2011, JMLR 12, figure 1 (diagonal).
    """
    who = "scale_by_adagrad"
    check_hyperparameters(who, **_ranges(initial_accumulator_value, eps))
    return lift(who, _stage(initial_accumulator_value, eps), chained=False)


def adagrad(
    learning_rate: ScalarOrSchedule, initial_accumulator_value: Scalar = 0.1, eps: Scalar = 1e-7
) -> Rule:
    r"""Adagrad, for sparse and ill-scaled gradients.

    $$s_t = s_{t-1} + g_t^2, \qquad \theta_{t+1} = \theta_t - \eta_t g_t / \sqrt{s_t + \epsilon}$$

    The sum never shrinks, so that steps become smaller like $1/\sqrt{t}$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      initial_accumulator_value: $s_0 \ge 0$, in squared units of the gradient.
      eps: $\epsilon \ge 0$, inside the root; a coordinate whose sum is 0 moves by 0.

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
    check_hyperparameters(
        "adagrad", learning_rate=(learning_rate, RATE), **_ranges(initial_accumulator_value, eps)
    )
    stage = _stage(initial_accumulator_value, eps)
    return lift("adagrad", stage, learning_rate_stage(learning_rate))


def _ranges(initial: Scalar, eps: Scalar) -> dict[str, tuple[Scalar, Range]]:
    return {"initial_accumulator_value": (initial, NON_NEGATIVE), "eps": (eps, NON_NEGATIVE)}


def _stage(initial: Scalar, eps: Scalar) -> Stage:
    def step(scalars: Scalars, g: Array, p: Any, fields: Fields) -> tuple[Array, Fields]:
        del scalars, p
        g = bounded(g, _TERMS)
        total = fields["sum_of_squares"] + abs_square(g)
        total = jnp.minimum(total, jnp.finfo(total.dtype).max)  # a sum that overflowed stays usable
        update = divide(g, jnp.sqrt(plus(total, eps)))
        return jnp.where(total == 0, jnp.zeros((), g.dtype), update), {"sum_of_squares": total}

    return Stage(step, ScaleByAdagradState, {"sum_of_squares": constant(initial, real=True)})
