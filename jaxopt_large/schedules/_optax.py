"""Optax's schedules, under whatever promotion is set.

Some of them mix dtypes in ways that `jax_numpy_dtype_promotion=strict` refuses, some only where an argument
is an array; all are evaluated under JAX's standard rules. A polynomial has its end value at its end, which
optax's misses by rounding under jit.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from .._types import Schedule
from ._values import standard


def _under_any_promotion(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """The same schedule, working whatever the promotion setting around it is."""

    @functools.wraps(make)
    def wrapped(*args: Any, **kwargs: Any) -> Schedule:
        return standard(make(*args, **kwargs))

    return wrapped


@functools.wraps(optax.polynomial_schedule)
def polynomial_schedule(
    init_value: Any, end_value: Any, power: Any, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    schedule = standard(
        optax.polynomial_schedule(init_value, end_value, power, transition_steps, transition_begin)
    )
    if transition_steps <= 0:
        return schedule
    end = transition_steps + max(transition_begin, 0)

    def value(count: Any) -> Any:
        # compilers take 1/steps for a factor: 1 - count/steps is then below 0, a root of it NaN
        return jnp.where(count >= end, end_value, schedule(count))

    return standard(value)


@functools.wraps(optax.linear_schedule)
def linear_schedule(
    init_value: Any, end_value: Any, transition_steps: int, transition_begin: int = 0
) -> Schedule:
    return polynomial_schedule(init_value, end_value, 1, transition_steps, transition_begin)


constant_schedule = optax.constant_schedule
cosine_decay_schedule = _under_any_promotion(optax.cosine_decay_schedule)
cosine_onecycle_schedule = _under_any_promotion(optax.cosine_onecycle_schedule)
exponential_decay = _under_any_promotion(optax.exponential_decay)
join_schedules = _under_any_promotion(optax.join_schedules)
linear_onecycle_schedule = _under_any_promotion(optax.linear_onecycle_schedule)
piecewise_constant_schedule = _under_any_promotion(optax.piecewise_constant_schedule)
piecewise_interpolate_schedule = _under_any_promotion(optax.piecewise_interpolate_schedule)
sgdr_schedule = _under_any_promotion(optax.sgdr_schedule)
warmup_constant_schedule = _under_any_promotion(optax.warmup_constant_schedule)
warmup_cosine_decay_schedule = _under_any_promotion(optax.warmup_cosine_decay_schedule)
warmup_exponential_decay_schedule = _under_any_promotion(optax.warmup_exponential_decay_schedule)
