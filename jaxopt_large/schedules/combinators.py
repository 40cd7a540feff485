"""Schedules of schedules."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from .._errors import RATE, Problems, number_problem
from .._hyperparameters import Natural, NonNegative, Positive, Rate, checked
from .._numerics import like
from .._types import ScalarOrSchedule, Schedule
from ._values import between, ramp, since, steps_of, value_of


def join(schedules: Sequence[ScalarOrSchedule], boundaries: Sequence[int]) -> Schedule:
    r"""Schedules one after the other, each from its own step 0.

    With $b_0 = 0$:

    $$\eta(t) = \eta_i(t - b_i) \quad (b_i \le t < b_{i+1})$$

    Optax's `join_schedules`, for schedules of any dtype and for numbers, and with its arguments checked.

    Args:
      schedules: $\eta_0, \eta_1, \dots$, each a schedule or a number. All are evaluated at every step.
      boundaries: $b_1 \le b_2 \le \dots$, the first step of each but the first; one of no length is
        passed over.

    Raises:
      TypeError: a schedule is neither a function nor a number, a boundary no whole number.
      ValueError: there is no schedule, the boundaries are not one fewer, negative or not in order.

    Source: optax, `join_schedules`.

    >>> rate = jl.join([jl.linear_schedule(0.0, 1.0, 2), 0.5], [3])
    >>> [float(rate(t)) for t in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.5]
    """
    schedules, boundaries = tuple(schedules), tuple(boundaries)
    _check_join(schedules, boundaries)

    def value(count: Any) -> Array:
        found = value_of("join", schedules[0], count)
        for start, schedule in zip(boundaries, schedules[1:], strict=True):
            here = value_of("join", schedule, since(count, start))
            found = jnp.where(jnp.asarray(count) < start, found, here)
        return found

    return value


@checked
def warmup(schedule: Rate, steps: Natural, init_value: NonNegative = 0.0) -> Schedule:
    r"""A linear warm-up in front of any schedule, or of a number.

    $$\eta(t) = \eta_0 + (\eta'(0) - \eta_0)\, t/w \quad (t < w), \qquad
      \eta(t) = \eta'(t - w) \quad (t \ge w)$$

    Args:
      schedule: $\eta'$, a schedule or a number; a schedule begins when the warm-up ends.
      steps: $w \ge 0$; 0 for none.
      init_value: $\eta_0$, at step 0.

    Raises:
      ValueError: a value is out of range.

    Source: Goyal et al. 2017, arXiv:1706.02677, section 2.2, for the linear warm-up.

    >>> rate = jl.warmup(jl.exponential_decay(1.0, 1, 0.5), steps=2)
    >>> [float(rate(t)) for t in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """

    def value(count: Any) -> Array:
        after = value_of("warmup", schedule, since(count, steps))  # its first value during the warm-up
        t = steps_of(count)
        return jnp.where(t < like(steps, t), between(init_value, after, ramp(t, 0, steps)), after)

    return value


@checked
def scaled_by_batch(
    learning_rate: Rate,
    batch_size: Positive,
    *,
    base_batch_size: Positive,
    power: NonNegative = 0.5,
) -> ScalarOrSchedule:
    r"""A learning rate that suits one batch size, for another.

    $$\eta = \eta_{\mathrm{base}} \left(\frac{B}{B_{\mathrm{base}}}\right)^{a}$$

    The root ($a = 1/2$) is for Adam and its relatives. Malladi et al. scale the decay rates with it,
    $1 - b \propto B/B_{\mathrm{base}}$, and `eps` by one over the root; this function leaves those to you.
    The linear rule ($a = 1$) is for SGD.

    Args:
      learning_rate: a number or a schedule, found at `base_batch_size`.
      batch_size: $B > 0$.
      base_batch_size: $B_{\mathrm{base}} > 0$.
      power: $a \ge 0$.

    Returns:
      A number for a number, a schedule for a schedule.

    Raises:
      ValueError: a value is out of range.

    Source: the root, Krizhevsky 2014, arXiv:1404.5997, section 5, and Malladi et al. 2022, arXiv:2205.10287;
    the linear rule, Goyal et al. 2017, arXiv:1706.02677.

    >>> jl.scaled_by_batch(0.25, 1024, base_batch_size=256)
    0.5
    >>> jl.scaled_by_batch(0.25, 1024, base_batch_size=256, power=1)
    1.0
    """
    factor = (batch_size / base_batch_size) ** power
    if callable(learning_rate):
        return lambda count: factor * value_of("scaled_by_batch", learning_rate, count)
    return factor * learning_rate


def _check_join(schedules: tuple[Any, ...], boundaries: tuple[Any, ...]) -> None:
    kinds, values = Problems("join"), Problems("join")
    for n, schedule in enumerate(schedules):
        if not callable(schedule):
            number_problem(f"schedules[{n}]", schedule, RATE, kinds, values)
    for n, boundary in enumerate(boundaries):
        if isinstance(boundary, bool) or not hasattr(boundary, "__index__"):
            allowed = f"boundaries[{n}] must be a number of steps >= 0"
            kinds.add(f"boundaries[{n}] is no whole number, got {boundary!r}", allowed=allowed)
    kinds.raise_if_any(TypeError)
    if len(boundaries) != len(schedules) - 1:
        wrong = f"boundaries do not fit the schedules, got {len(boundaries)} for {len(schedules)}"
        values.add(wrong, allowed="there is one fewer, the first step of each schedule but the first")
    elif any(a > b for a, b in itertools.pairwise((0, *boundaries))):
        wrong = f"boundaries are not in order, got {list(boundaries)}"
        values.add(wrong, allowed="each is at least the one before, and the first at least 0")
    values.raise_if_any(ValueError)
