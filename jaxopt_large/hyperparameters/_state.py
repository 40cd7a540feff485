"""What is kept of a number, and how a rule gets it."""

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._errors import SCHEDULED, check_hyperparameters
from .._knob import Knob, halves, log_of
from .._nodes import StateNode
from .._static import StaticNode
from .._types import State


class Exact(NamedTuple):
    """What a float32 lacks of the number that was given."""

    of: Float[Array, ""]  # the float32 to which the rest belongs; for others it does not count
    low: Float[Array, ""]  # number - of
    log: Float[Array, ""]  # its natural logarithm
    log_low: Float[Array, ""]  # and the rest of that


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Knobs(StaticNode):
    """Which hyper-parameters there are, and what they may be."""

    who: str
    allowed: tuple[tuple[str, str], ...]  # name -> the words for its range
    scheduled: tuple[str, ...]


class _Fields(NamedTuple):
    hyperparams: dict[str, Float[Array, ""]]  # float32, each as it was used last
    exact: dict[str, Exact]
    count: Int[Array, ""] | None  # steps taken, where a schedule asks for them
    inner: State
    knobs: Knobs


class WithHyperparamsState(_Fields, StateNode):
    """State of `with_hyperparams`."""

    __slots__ = ()
    own: ClassVar[tuple[str, ...]] = ("hyperparams", "exact", "count")


def exact_of(value: Any) -> Exact:
    """A number as the state has it: in float64 on the host, if it is Python's or NumPy's."""
    if isinstance(value, numbers.Real | np.generic) and not hasattr(value, "aval"):
        exact = float(value)
        return Exact(*(jnp.asarray(x) for x in (*halves(exact), *halves(log_of(exact)))))
    high = jnp.asarray(value).astype(jnp.float32)
    return Exact(high, jnp.zeros_like(high), jnp.log1p(high - 1.0), jnp.zeros_like(high))


def knobs_of(current: Mapping[str, Any], exact: Mapping[str, Exact]) -> dict[str, Knob]:
    """The numbers as a rule takes them: with what is known of them, if it is still of them."""
    found = {}
    for name, value in current.items():
        known = exact[name]
        same = known.of == value
        zero = jnp.zeros((), jnp.float32)
        log = Knob(jnp.where(same, known.log, jnp.log1p(value - 1.0)), jnp.where(same, known.log_low, zero))
        found[name] = Knob(value, jnp.where(same, known.low, zero), log)
    return found


def scheduled_value(who: str, name: str, schedule: Callable[..., Any], count: Any) -> Float[Array, ""]:
    value = schedule(count)
    check_hyperparameters(who, **{name: (value, SCHEDULED)})
    return jnp.asarray(value).astype(jnp.float32)
