"""Optax's schedules, under whatever promotion is set.

Some of them mix dtypes in ways that `jax_numpy_dtype_promotion=strict` refuses, some only where an argument
is an array; all are evaluated under JAX's standard rules.
"""

import functools
from collections.abc import Callable
from typing import Any

import optax

from .._types import Schedule
from ._values import standard


def _under_any_promotion(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """The same schedule, working whatever the promotion setting around it is."""

    @functools.wraps(make)
    def wrapped(*args: Any, **kwargs: Any) -> Schedule:
        return standard(make(*args, **kwargs))

    return wrapped


constant_schedule = optax.constant_schedule
cosine_decay_schedule = _under_any_promotion(optax.cosine_decay_schedule)
cosine_onecycle_schedule = _under_any_promotion(optax.cosine_onecycle_schedule)
exponential_decay = _under_any_promotion(optax.exponential_decay)
join_schedules = _under_any_promotion(optax.join_schedules)
linear_onecycle_schedule = _under_any_promotion(optax.linear_onecycle_schedule)
linear_schedule = _under_any_promotion(optax.linear_schedule)
piecewise_constant_schedule = _under_any_promotion(optax.piecewise_constant_schedule)
piecewise_interpolate_schedule = _under_any_promotion(optax.piecewise_interpolate_schedule)
polynomial_schedule = _under_any_promotion(optax.polynomial_schedule)
sgdr_schedule = _under_any_promotion(optax.sgdr_schedule)
warmup_constant_schedule = _under_any_promotion(optax.warmup_constant_schedule)
warmup_cosine_decay_schedule = _under_any_promotion(optax.warmup_cosine_decay_schedule)
warmup_exponential_decay_schedule = _under_any_promotion(optax.warmup_exponential_decay_schedule)
