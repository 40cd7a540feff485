"""The grammar of error messages, and the checks of hyper-parameters that speak it.

`<who>: <what is wrong, got {x!r}> at <parameter path>; <what is allowed>. <what to do>.`
"""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np


def message(who: str, wrong: str, *, at: str = "", allowed: str = "", do: str = "") -> str:
    """One sentence of the error grammar; empty parts are left out.

    >>> message("adam", "b1 must be a decay rate, got 1.5", allowed="0 <= b1 < 1")
    'adam: b1 must be a decay rate, got 1.5; 0 <= b1 < 1.'
    """
    place = f" at {at}" if at else ""
    rule = f"; {allowed}" if allowed else ""
    remedy = f" {do}." if do else ""
    return f"{who}: {wrong}{place}{rule}.{remedy}"


@dataclasses.dataclass
class Problems:
    """Collects what is wrong, so that a user sees all of it at once."""

    who: str
    found: list[str] = dataclasses.field(default_factory=list)

    def add(self, wrong: str, *, at: str = "", allowed: str = "", do: str = "") -> None:
        self.found.append(message(self.who, wrong, at=at, allowed=allowed, do=do))

    def raise_if_any(self, error: type[Exception] = ValueError) -> None:
        if self.found:
            raise error("\n".join(self.found))


def check_rule(who: str, rule: Any, name: str = "rule") -> None:
    """Raises unless an argument is a rule.

    Raises:
      TypeError: it is not.
    """
    if not is_rule(rule):
        raise TypeError(message(who, f"{name} is not a rule, got {rule!r}"))


def is_rule(x: Any) -> bool:
    return hasattr(x, "init") and hasattr(x, "update")


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a hyper-parameter may take.

    Attributes:
      known: all of them, by their words.
    """

    known: ClassVar[dict[str, "Range"]] = {}

    allowed: str
    contains: Callable[[float], bool]
    schedule: bool = False  # may it also be a function of the step?
    is_fixed: bool = False  # do shapes depend on it?

    def __post_init__(self) -> None:
        self.known.setdefault(self.allowed, self)


DECAY = Range("a number in [0, 1)", lambda x: 0 <= x < 1)
NON_NEGATIVE = Range("a number >= 0", lambda x: x >= 0)
NUMBER = Range("a finite number", lambda x: True)
POSITIVE = Range("a number > 0", lambda x: x > 0)
RATE = Range("a number >= 0, a schedule or an array of shape ()", lambda x: x >= 0, schedule=True)
DECAYING = Range("a number in [0, 1), a schedule or an array of shape ()", DECAY.contains, schedule=True)

SCHEDULED = Range("a finite number or an array of shape (), also from a schedule", lambda x: True)


def check_hyperparameters(who: str, **values: tuple[Any, Range]) -> None:
    """Raises for every value outside its range; arrays and tracers are checked for shape only.

    Raises:
      TypeError: a value is neither a number nor an array (nor a schedule where one may stand).
      ValueError: a number is out of range or not finite, or an array is not a scalar.
    """
    types, ranges = Problems(who), Problems(who)
    for name, (value, allowed) in values.items():
        number_problem(name, value, allowed, types, ranges)
    if types.found:
        types.found += ranges.found
    types.raise_if_any(TypeError)
    ranges.raise_if_any(ValueError)


def number_problem(name: str, value: Any, allowed: Range, types: Problems, ranges: Problems) -> None:
    """Adds what is wrong with a number: to `types` if it is none, to `ranges` if it is out of range."""
    must = f"{name} must be {allowed.allowed}"
    if allowed.schedule and callable(value):
        return
    if isinstance(value, bool) or not (
        (isinstance(value, numbers.Real | np.ndarray | np.generic) or hasattr(value, "aval"))
        and getattr(getattr(value, "dtype", None), "kind", "f") not in "OSUMmc"
    ):
        types.add(f"{name} is not a number, got {value!r}", allowed=must)
    elif (shape := getattr(value, "shape", ())) != ():
        ranges.add(f"{name} is not a scalar, got an array of shape {shape}", allowed=must)
    elif not hasattr(value, "aval") and not (math.isfinite(float(value)) and allowed.contains(float(value))):
        ranges.add(f"{name} is out of range, got {value!r}", allowed=must)
