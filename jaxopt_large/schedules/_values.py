"""What the schedules here are computed from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import SCHEDULED, check_hyperparameters
from .._numerics import as_scalar, divide, like, scalar_dtype
from .._types import Scalar, ScalarOrSchedule, Schedule


def steps_of(count: Any) -> Array:
    """Steps taken, as a number in the scalar dtype."""
    return jnp.asarray(count).astype(scalar_dtype())


def since(count: Any, start: Scalar) -> Array:
    """Steps since `start`, 0 before it; unsigned counts do not wrap."""
    count = jnp.asarray(count)
    start = jnp.asarray(start).astype(count.dtype)
    return jnp.where(count < start, jnp.zeros_like(count), count - start)


def ramp(t: Array, start: Scalar, stop: Scalar) -> Array:
    """0 before `start`, 1 from `stop`, linear between."""
    start, stop = (jnp.asarray(like(x, t)).astype(t.dtype) for x in (start, stop))
    part = jnp.clip(divide(t - start, stop - start), 0.0, 1.0)
    return jnp.where(t >= stop, 1.0, part)  # the quotient, rounded, may miss it


def between(first: Scalar, last: Scalar, part: Array) -> Array:
    """`first` where the part is 0, `last` where it is 1, linear between."""
    return like(first, part) * (1.0 - part) + like(last, part) * part


def standard(schedule: Schedule) -> Schedule:
    """A schedule that may mix dtypes, whatever the promotion setting around it is."""

    def value(count: Any) -> Any:
        if jnp.issubdtype(getattr(count, "dtype", np.int32), jnp.unsignedinteger):  # differences would wrap
            largest = jnp.iinfo(jnp.int32).max
            count = jnp.minimum(jnp.asarray(count), largest).astype(jnp.int32)
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return value


def value_of(who: str, schedule: ScalarOrSchedule, count: Any) -> Array:
    """What a schedule or a number is at a step, in the scalar dtype.

    Raises:
      TypeError, ValueError: that is no number.
    """
    value = standard(schedule)(count) if callable(schedule) else schedule
    if jnp.ndim(count) == 0:  # not where a user asks for many steps at once
        check_hyperparameters(who, schedule=(value, SCHEDULED))
    return as_scalar(value)


def is_known(value: Any) -> bool:
    """Is it a number now, and not only when a traced function runs?"""
    return not hasattr(value, "aval")
