"""Schedules as configurations write them: this is the list of them.

What comes before the star is what a configuration says, with its types; what comes after is what the run
knows, its number of steps.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from .. import schedules
from .._types import Schedule
from ..schedules.cycles import CYCLIC_SHAPES, ONE_CYCLE_SHAPES
from ..schedules.decays import SHAPES
from ._inputs import FLOAT32, Count, Natural, Rate

_literal: Any = Literal  # of names that are found in a list

Fall = _literal[SHAPES]
Rise = _literal[ONE_CYCLE_SHAPES]
Cycle = _literal[CYCLIC_SHAPES]
Above0 = Annotated[float, Field(gt=0, le=FLOAT32)]
Share = Annotated[float, Field(ge=0, lt=1)]
Shrinking = Annotated[float, Field(gt=0, le=1)]
Then = Callable[[int], Schedule]  # another schedule, of a run of so many steps


def constant(peak: Rate, warmup: Natural = 0, *, steps: int) -> Schedule:
    """Linear up, constant."""
    del steps
    return schedules.warmup(peak, warmup)


def linear(peak: Rate, warmup: Natural = 0, end: Rate = 0.0, *, steps: int) -> Schedule:
    """Linear up, linear down until the end of the run."""
    return warmup_stable_decay(peak, warmup, max(0, steps - warmup), end, steps=steps)


def exponential(peak: Above0, end: Above0, warmup: Natural = 0, *, steps: int) -> Schedule:
    """Linear up, geometric down until the end of the run."""
    return warmup_stable_decay(peak, warmup, max(0, steps - warmup), end, "exponential", steps=steps)


def warmup_cosine(peak: Rate, warmup: Natural, end: Rate = 0.0, *, steps: int) -> Schedule:
    """Linear up, a half cosine down."""
    # optax wants a decay that outlasts the warm-up
    return schedules.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), end)


def warmup_stable_decay(
    peak: Rate, warmup: Natural, decay: Natural, end: Rate = 0.0, shape: Fall = "linear", *, steps: int
) -> Schedule:
    """Linear up, constant, down."""
    stable = max(0, steps - warmup - decay)
    return schedules.warmup_stable_decay(
        peak, warmup_steps=warmup, stable_steps=stable, decay_steps=decay, end_value=end, shape=shape
    )


def inverse_sqrt(peak: Rate, warmup: Count, *, steps: int) -> Schedule:
    """Linear up, then down like one over the root of the step."""
    del steps
    return schedules.inverse_sqrt(peak, warmup_steps=warmup)


def power(peak: Rate, exponent: Rate, warmup: Count, *, steps: int) -> Schedule:
    """Linear up, then down like a power of the step."""
    del steps
    return schedules.power(peak, exponent, warmup_steps=warmup)


def one_cycle(
    peak: Rate,
    warmup_fraction: Share = 0.3,
    init_divisor: Above0 = 25.0,
    final_divisor: Above0 = 1e4,
    shape: Rise = "cosine",
    *,
    steps: int,
) -> Schedule:
    """Up, and down to almost nothing at the last step of the run."""
    return schedules.one_cycle(
        peak,
        steps=steps,
        warmup_fraction=warmup_fraction,
        init_divisor=init_divisor,
        final_divisor=final_divisor,
        shape=shape,
    )


def cyclic(
    low: Rate,
    high: Rate,
    half_period: Count,
    shape: Cycle = "triangular",
    decay: Shrinking | None = None,
    *,
    steps: int,
) -> Schedule:
    """Up and down, again and again."""
    del steps
    return schedules.cyclic(low, high, half_period=half_period, shape=shape, decay=decay)


def warmup_then(warmup: Natural, then: Then, *, steps: int) -> Schedule:
    """Linear up to where another schedule begins, which has the rest of the run."""
    return schedules.warmup(then(max(1, steps - warmup)), warmup)


SCHEDULES = {
    make.__name__: make
    for make in (
        constant,
        linear,
        exponential,
        warmup_cosine,
        warmup_stable_decay,
        inverse_sqrt,
        power,
        one_cycle,
        cyclic,
        warmup_then,
    )
}
