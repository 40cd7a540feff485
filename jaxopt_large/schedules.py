"""Learning-rate schedules: optax's, and two that it lacks.

A schedule is a function from the number of steps taken to a value. Some of optax's mix dtypes in ways
that `jax_numpy_dtype_promotion=strict` refuses; those are evaluated here under JAX's standard rules.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ._hyperparameters import NonNegative, Positive, checked
from ._numerics import scalar_dtype
from ._types import Schedule


def _under_any_promotion(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """The same schedule, working whatever the promotion setting around it is."""

    @functools.wraps(make)
    def wrapped(*args: Any, **kwargs: Any) -> Schedule:
        schedule = make(*args, **kwargs)

        def value(count: Any) -> Any:
            with jax.numpy_dtype_promotion("standard"):
                return schedule(count)

        return value

    return wrapped


constant_schedule = optax.constant_schedule
cosine_decay_schedule = _under_any_promotion(optax.cosine_decay_schedule)
cosine_onecycle_schedule = _under_any_promotion(optax.cosine_onecycle_schedule)
exponential_decay = optax.exponential_decay
join_schedules = optax.join_schedules
linear_onecycle_schedule = _under_any_promotion(optax.linear_onecycle_schedule)
linear_schedule = optax.linear_schedule
piecewise_constant_schedule = _under_any_promotion(optax.piecewise_constant_schedule)
piecewise_interpolate_schedule = _under_any_promotion(optax.piecewise_interpolate_schedule)
polynomial_schedule = optax.polynomial_schedule
sgdr_schedule = _under_any_promotion(optax.sgdr_schedule)
warmup_constant_schedule = optax.warmup_constant_schedule
warmup_cosine_decay_schedule = _under_any_promotion(optax.warmup_cosine_decay_schedule)
warmup_exponential_decay_schedule = optax.warmup_exponential_decay_schedule


@checked
def warmup_stable_decay(
    peak_value: NonNegative,
    *,
    warmup_steps: NonNegative,
    stable_steps: NonNegative,
    decay_steps: NonNegative,
    init_value: NonNegative = 0.0,
    end_value: NonNegative = 0.0,
) -> Schedule:
    r"""Linear up, constant, linear down: the trapezoid.

    With $w$, $s$, $d$ the three lengths, $p$ the peak:

    $$\eta(t) = \eta_0 + (p - \eta_0) \min(1, t/w) - (p - \eta_1) \mathrm{clip}((t - w - s)/d, 0, 1)$$

    Args:
      peak_value: $p \ge 0$, held for `stable_steps`.
      warmup_steps: $w \ge 0$, steps from `init_value` to the peak.
      stable_steps: $s \ge 0$.
      decay_steps: $d \ge 0$, steps from the peak to `end_value`, which holds from then on.
      init_value: $\eta_0$, at step 0.
      end_value: $\eta_1$, at the end.

    Raises:
      ValueError: a value is negative or not finite.

    Source: Hägele et al. 2024, arXiv:2405.18392.

    >>> rate = jl.warmup_stable_decay(1.0, warmup_steps=2, stable_steps=4, decay_steps=2)
    >>> [float(rate(t)) for t in (0, 1, 2, 6, 7, 8, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    decay_start = warmup_steps + stable_steps

    def value(count: Any) -> Array:
        t = jnp.asarray(count).astype(scalar_dtype())
        up = _ramp(t, 0, warmup_steps)
        down = _ramp(t, decay_start, decay_steps)
        return init_value + (peak_value - init_value) * up - (peak_value - end_value) * down

    return value


@checked
def inverse_sqrt(
    peak_value: NonNegative, *, warmup_steps: Positive, init_value: NonNegative = 0.0
) -> Schedule:
    r"""Linear up, then down like one over the root of the step.

    $$\eta(t) = \eta_0 + (p - \eta_0) t/w \quad (t < w), \qquad \eta(t) = p \sqrt{w/t} \quad (t \ge w)$$

    Args:
      peak_value: $p \ge 0$, reached at step $w$.
      warmup_steps: $w > 0$.
      init_value: $\eta_0$, at step 0.

    Raises:
      ValueError: a value is out of range.

    Source: Vaswani et al. 2017, arXiv:1706.03762, equation 3.

    >>> rate = jl.inverse_sqrt(1.0, warmup_steps=4)
    >>> [float(rate(t)) for t in (0, 2, 4, 16, 64)]
    [0.0, 0.5, 1.0, 0.5, 0.25]
    """

    def value(count: Any) -> Array:
        t = jnp.asarray(count).astype(scalar_dtype())
        up = init_value + (peak_value - init_value) * _ramp(t, 0, warmup_steps)
        return jnp.where(t < warmup_steps, up, peak_value * jnp.sqrt(warmup_steps / jnp.maximum(t, 1.0)))

    return value


def _ramp(t: Array, start: float, length: float) -> Array:
    """0 before `start`, 1 from `start + length`, linear between."""
    if length == 0:
        return (t >= start).astype(t.dtype)
    return jnp.clip((t - start) / length, 0.0, 1.0)


# this is the list of them
SCHEDULES = (
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    exponential_decay,
    inverse_sqrt,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    sgdr_schedule,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay,
)

__all__ = [make.__name__ for make in SCHEDULES]
