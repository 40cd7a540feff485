"""Schedules as configurations write them: this is the list of them.

What comes before the star is what a configuration says, with its types; what comes after is what the run
knows, its number of steps.
"""

from .._types import Schedule
from ..schedules import inverse_sqrt as _inverse_sqrt
from ..schedules import warmup_cosine_decay_schedule
from ..schedules import warmup_stable_decay as _warmup_stable_decay
from ._inputs import Count, Natural, Rate


def warmup_cosine(peak: Rate, warmup: Natural, end: Rate = 0.0, *, steps: int) -> Schedule:
    """Linear up, a half cosine down."""
    # optax wants a decay that outlasts the warm-up
    return warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), end)


def warmup_stable_decay(
    peak: Rate, warmup: Natural, decay: Natural, end: Rate = 0.0, *, steps: int
) -> Schedule:
    """Linear up, constant, linear down."""
    stable = max(0, steps - warmup - decay)
    return _warmup_stable_decay(
        peak, warmup_steps=warmup, stable_steps=stable, decay_steps=decay, end_value=end
    )


def inverse_sqrt(peak: Rate, warmup: Count, *, steps: int) -> Schedule:
    """Linear up, then down like one over the root of the step."""
    del steps
    return _inverse_sqrt(peak, warmup_steps=warmup)


SCHEDULES = {make.__name__: make for make in (warmup_cosine, warmup_stable_decay, inverse_sqrt)}
