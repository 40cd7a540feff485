"""Functions that make rules: which of their arguments are numbers that can turn, and which stay."""

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from .._errors import NUMBER, Problems, Range, is_rule, message, number_problem
from .._hyperparameters import domains
from .._types import Rule
from ..rules import RULES
from ._state import Exact, exact_of, scheduled_value


class Factory:
    """A function that makes rules, and its arguments: numbers, schedules, and all else.

    Attributes:
      who: its name.
      numbers: name -> the number that it starts with; None of one that a schedule gives.
      ranges: name -> what such a number may be.
      schedules: name -> schedule.
    """

    def __init__(self, factory: Any, args: tuple[Any, ...], values: dict[str, Any]):
        if not callable(factory) or is_rule(factory):
            do = "Pass the function, as in with_hyperparams(jl.adamw, learning_rate=3e-4)"
            raise TypeError(message("with_hyperparams", f"factory makes no rules, got {factory!r}", do=do))
        self._make = factory
        inner = getattr(factory, "func", factory)  # of a partial function
        self.who = getattr(inner, "__name__", type(inner).__name__)
        parameters = inspect.signature(factory).parameters
        unnamed = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)]
        if unnamed:
            wrong = f"{self.who} has arguments without a name, got {', '.join(unnamed)}"
            do = "Pass a function whose arguments all have names"
            raise TypeError(message("with_hyperparams", wrong, do=do))
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        problems = Problems("with_hyperparams")
        for name in values.keys() - parameters.keys() if not open_ended else ():
            there = ", ".join(parameters)
            problems.add(f"{self.who} has no hyper-parameter {name!r}", allowed=f"it has {there}")
        problems.raise_if_any(TypeError)
        values = {**inspect.signature(factory).bind_partial(*args).arguments, **values}
        bound = getattr(factory, "keywords", {})  # of a partial function: they are left out
        free = {n: p for n, p in parameters.items() if n not in bound}
        defaults = {n: p.default for n, p in free.items() if p.default is not p.empty}
        self.ranges = _ranges(factory)
        self.numbers: dict[str, Any] = {}
        self.schedules: dict[str, Callable[..., Any]] = {}
        self._fixed: dict[str, Any] = {}
        whole, order = {**defaults, **values}, list(parameters)
        for name in sorted(whole, key=lambda name: order.index(name) if name in order else len(order)):
            self._sort(name, whole[name], parameters.get(name))
        self._check(whole)

    def _check(self, whole: dict[str, Any]) -> None:
        """Raises for numbers out of range, and for arguments of which none turns; makes the rule once."""
        types, wrong = Problems("with_hyperparams"), Problems("with_hyperparams")
        for name, value in self.numbers.items():
            if value is not None and not self._is_ours:  # ours say so themselves
                number_problem(name, value, self.ranges[name], types, wrong)
        if not self.numbers:
            got = ", ".join(whole) or "no arguments"
            do = "Give one, such as learning_rate=3e-4"
            wrong.add(f"{self.who} has no number that could turn, got {got}", do=do)
        types.raise_if_any(TypeError)
        wrong.raise_if_any()
        plain = {name: value for name, value in self.numbers.items() if value is not None}
        self._make(**self._fixed, **plain, **self._first_values)

    @property
    def _first_values(self) -> dict[str, Any]:
        """What schedules begin with, for the check at construction."""
        start = jnp.zeros((), jnp.int32)
        return {name: scheduled_value(self.who, name, s, start) for name, s in self.schedules.items()}

    def rule(self, values: dict[str, Any]) -> Rule:
        """The rule with these numbers."""
        return optax.with_extra_args_support(self._make(**self._fixed, **values))

    def start(self, name: str) -> Exact:
        """What the state begins with."""
        value = self.numbers[name]
        if name in self.schedules:
            return exact_of(scheduled_value(self.who, name, self.schedules[name], jnp.zeros((), jnp.int32)))
        return exact_of(value)

    def _sort(self, name: str, value: Any, parameter: Any) -> None:
        """A number that can turn, a schedule of one, or what stays as it is."""
        domain = self.ranges.get(name, None if self._is_ours else NUMBER)
        if domain is None or domain.is_fixed:
            self._fixed[name] = value
        elif callable(value) and self._may_follow(name, value, parameter):
            self.schedules[name], self.numbers[name], self.ranges[name] = value, None, domain
        elif _is_number(value, whole=name in self.ranges or _says_float(parameter)):
            self.numbers[name], self.ranges[name] = value, domain
        else:
            self._fixed[name] = value

    def _may_follow(self, name: str, value: Any, parameter: Any) -> bool:
        """May a function be a schedule there? Others take functions for masks, too."""
        annotation = getattr(parameter, "annotation", inspect.Parameter.empty)
        if annotation is not inspect.Parameter.empty and not self._is_ours:
            return "Schedule" in str(annotation)
        if self._is_ours:
            return name in self.ranges
        try:  # a function of a user's, who says nothing: is it one of the step?
            found = value(jnp.zeros((), jnp.int32))
        except Exception:
            return False
        return jnp.shape(found) == () and not isinstance(found, bool)

    @property
    def _is_ours(self) -> bool:
        made = getattr(self._make, "func", self._make)
        return getattr(made, "__module__", "").startswith(__name__.partition(".")[0] + ".")


def _ranges(factory: Any) -> dict[str, Range]:
    """What the numbers of a factory may be; optax's are what ours of the same name are."""
    ours = factory = getattr(factory, "func", factory)
    if getattr(factory, "__module__", "").startswith("optax."):
        ours = RULES.get(getattr(factory, "__name__", ""), factory)
    try:
        found = domains(ours)
    except Exception:  # whatever the annotations of others do not resolve to
        return {}
    there = inspect.signature(factory).parameters
    return {name: d for name, d in found.items() if isinstance(d, Range) and name in there}


def _is_number(value: Any, *, whole: bool) -> bool:
    """Is it a number that can turn? Whole ones are where one with a fraction could stand, too."""
    if isinstance(value, bool | np.bool_) or value is None:
        return False
    if isinstance(value, int | np.integer):
        return whole
    if isinstance(value, numbers.Real | np.floating):
        return True
    dtype = getattr(value, "dtype", None)
    if dtype is None or jnp.shape(value) != ():
        return False
    return jnp.issubdtype(dtype, jnp.floating) or (whole and jnp.issubdtype(dtype, jnp.integer))


def _says_float(parameter: Any) -> bool:
    told = str(getattr(parameter, "annotation", ""))
    return any(word in told for word in ("float", "ArrayLike", "Scalar", "Numeric", "Schedule"))
