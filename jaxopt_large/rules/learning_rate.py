"""The learning rate, as the last step of a rule."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._errors import SCHEDULED, check_hyperparameters
from .._hyperparameters import Rate, checked
from .._numerics import as_scalar, like, times
from .._state_fields import StaticField
from .._types import Rule, Scalar, ScalarOrSchedule
from ..leafwise import Stage, count, lift

__all__ = ["scale_by_learning_rate"]


@jax.tree_util.register_static
class Told:
    """What a value is a function of, for who asks a state; two of them are always equal."""

    def __init__(self, name: str, schedule: Callable[[Any], Any] | None):
        self.name, self.schedule = name, schedule

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Told)

    def __hash__(self) -> int:
        return hash(Told)

    def __reduce__(self) -> Any:
        return Told, (self.name, None)  # functions are not pickled

    def __repr__(self) -> str:
        return f"Told({self.name!r})"


@dataclasses.dataclass(frozen=True)
class _ToldField(StaticField):
    """The field that says so; states of others do not."""

    is_needed: ClassVar[bool] = False
    told: Told

    def begin(self, who: str, params: Any) -> Any:
        del who, params
        return self.told


class ScaleByScheduleState(NamedTuple):
    """State of a stage whose value is a function of the step."""

    count: Int[Array, ""]  # steps taken
    told: Any = None  # of what the count is

    def last_value(self, name: str) -> Any:
        """What the schedule of that name gave in the last step; None if there is none."""
        if self.told is None or self.told.name != name or self.told.schedule is None:
            return None
        schedule = self.told.schedule
        return jax.jit(lambda count: as_scalar(schedule(jnp.maximum(count - 1, 0))))(self.count)


@checked
def scale_by_learning_rate(learning_rate: Rate | None = None, *, flip_sign: bool = True) -> Rule:
    r"""Multiplies by minus the learning rate: $u_t = -\eta_t g_t$.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule, which is called
        with the number of steps taken before this one; None passes the gradient on as it is.
      flip_sign: whether the sign is turned; else $u_t = \eta_t g_t$.

    Returns:
      The rule; its state is empty for a number and holds `count` for a schedule.

    Raises:
      ValueError: the rate is negative or not finite.
      TypeError: the rate is none of the above.

    >>> rule = jl.scale_by_learning_rate(0.5)
    >>> updates, state = rule.update(jnp.float32(2.0), rule.init(jnp.float32(1.0)))
    >>> float(updates)
    -1.0
    """

    def step(rate: Any, g: Array, p: Any, kept: Any) -> tuple[Array, Any]:
        del p
        if learning_rate is None:
            return g, kept
        rate = like(learning_rate, g) if rate is None else rate
        return times(-rate if flip_sign else rate, g), kept

    return lift("scale_by_learning_rate", scheduled(step, "learning_rate", learning_rate), chained=False)


def scaled(learning_rate: ScalarOrSchedule, ratio: Scalar) -> ScalarOrSchedule:
    """A learning rate, or a schedule of it, times a number."""
    if callable(learning_rate):
        return lambda count: ratio * learning_rate(count)
    return ratio * learning_rate


def value_at(value: ScalarOrSchedule, count: Any) -> Scalar:
    """A hyper-parameter at a step: what a schedule gives, or the constant."""
    return value(count) if callable(value) else value


def checked_rate(who: str, learning_rate: ScalarOrSchedule, count: Any) -> Float[Array, ""]:
    """The learning rate at a step, of a rule that has it inside; what a schedule gives is looked at."""
    rate = value_at(learning_rate, count)
    check_hyperparameters(who, learning_rate=(rate, SCHEDULED))
    return as_scalar(rate)


def scheduled(step: Any, name: str, value: ScalarOrSchedule, **options: Any) -> Stage:
    """A stage that reads a hyper-parameter: a constant, or a schedule with a counter of its own.

    Args:
      step: it gets what the schedule gives, or None where the value is a constant.
      name: of the hyper-parameter.
      value: itself.
      **options: of the stage.
    """
    if not callable(value):
        return Stage(step, **options)
    state = ScaleByScheduleState(count(), _ToldField(Told(name, value)))
    return Stage(step, state, shared=lambda kept: value(kept.count), scheduled=name, **options)
