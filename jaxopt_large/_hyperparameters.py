"""Hyper-parameters: what an argument may be is said once, in its type, and checked at construction.

    @checked
    def sgd(learning_rate: Rate, momentum: Decay | None = None) -> Rule: ...

All problems are reported together, in the name of the function. Configurations read the same types.
"""

import contextlib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, TypeAlias, TypeVar

import jax.numpy as jnp

from ._errors import (
    DECAY,
    DECAYING,
    NON_NEGATIVE,
    NUMBER,
    POSITIVE,
    RATE,
    Problems,
    Range,
    is_rule,
    number_problem,
)
from ._types import Scalar, ScalarOrSchedule

_F = TypeVar("_F", bound=Callable[..., Any])
_literal: Any = Literal  # of names that are found in a list


class Domain(Protocol):
    """The values that an argument may take.

    Attributes:
      plain: the type of what a configuration may say.
    """

    plain: Any

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        """Adds what is wrong with a value: to `types` if it is of another kind, else to `values`."""
        ...


class _Floating:
    """A floating dtype, or None: an integer one would truncate to 0."""

    plain = str

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del types
        if value is None:
            return
        try:
            known = jnp.dtype(value)
        except TypeError:
            known = None
        if known is None or not jnp.issubdtype(known, jnp.inexact):
            got = value if known is None else known.name
            allowed = "None, bfloat16, float16, float32 or float64, or a complex dtype"
            values.add(f"{name} is not a floating dtype, got {got!r}", allowed=allowed)


class _Leaves:
    """Which leaves: a glob, booleans, a function; `spread` checks it when there are leaves."""

    plain = str

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del name, value, types, values


class OneOf:
    """One of some names."""

    def __init__(self, *names: str):
        self.names, self.plain = names, _literal[names]

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        """Adds a problem if the value is none of the names."""
        del types
        if value not in self.names:
            allowed = f"one of {', '.join(map(repr, self.names))}"
            values.add(f"{name} is unknown, got {value!r}", allowed=allowed)


class _Count:
    """A whole number, from `least` on."""

    plain = int

    def __init__(self, least: int = 1):
        self.least = least

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        if isinstance(value, bool) or not isinstance(value, int):
            traced = hasattr(value, "aval")
            do = f"Pass static_args={name!r} to inject_hyperparams" if traced else ""
            types.add(
                f"{name} is no whole number, got {value!r}",
                allowed=f"{name} must be at least {self.least}",
                do=do,
            )
        elif value < self.least:
            allowed = f"{name} must be at least {self.least}"
            values.add(f"{name} is out of range, got {value!r}", allowed=allowed)


class _Roles:
    """How leaves are read as matrices, by glob; whoever reads them checks them."""

    plain = dict[str, str]

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del name, value, types, values


class _Glob:
    """A glob over the paths of parameters."""

    plain = str

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del values
        if not isinstance(value, str):
            types.add(f"{name} is not a glob, got {value!r}", allowed='a string; "" matches nothing')


class _Axes:
    """Names of mesh axes or mapped axes: one, or several."""

    plain = str | list[str]

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del values
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, tuple | list) or not names or not all(isinstance(n, str) for n in names):
            types.add(f"{name} are no axes, got {value!r}", allowed="a name, or a tuple of names")


class _Pair:
    """Two decay rates."""

    plain = list[float]

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        if not isinstance(value, tuple | list) or len(value) != 2:
            types.add(f"{name} is no pair, got {value!r}", allowed="two numbers in [0, 1)")
            return
        for n, each in enumerate(value):
            number_problem(f"{name}[{n}]", each, DECAY, types, values)


class _LeafAxes:
    """Axes of leaves, by glob: positions, counted from the end where negative."""

    plain = dict[str, list[int]]

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del values
        if not isinstance(value, Mapping):
            types.add(f"{name} is no mapping, got {value!r}", allowed="globs and the axes of leaves there")
            return
        for glob, axes in value.items():
            fits = isinstance(axes, tuple | list) and all(type(axis) is int for axis in axes)
            if not isinstance(glob, str) or not fits or len(set(axes)) < len(axes):
                types.add(f"{name} of {glob!r} are no axes, got {axes!r}", allowed="whole numbers, each once")


class _AnotherRule:
    """A rule."""

    plain = None  # a group of settings

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        del values
        if not is_rule(value):
            types.add(f"{name} is not a rule, got {value!r}")


FLOATING, LEAVES, COUNT, NATURAL = _Floating(), _Leaves(), _Count(), _Count(0)
PAIR, LEAF_AXES = _Pair(), _LeafAxes()
ROLES, GLOB, AXES, RULE = _Roles(), _Glob(), _Axes(), _AnotherRule()

Decay: TypeAlias = Annotated[Scalar, DECAY]  # in [0, 1)
DecayOrSchedule: TypeAlias = Annotated[ScalarOrSchedule, DECAYING]  # in [0, 1), or a schedule
Decays: TypeAlias = Annotated[Any, PAIR]  # two, in [0, 1)
LeafAxes: TypeAlias = Annotated[Any, LEAF_AXES]  # glob -> axes
NonNegative: TypeAlias = Annotated[Scalar, NON_NEGATIVE]
Positive: TypeAlias = Annotated[Scalar, POSITIVE]
Rate: TypeAlias = Annotated[ScalarOrSchedule, RATE]  # >= 0, or a schedule
StateDtype: TypeAlias = Annotated[Any, FLOATING]  # of a field of the state; None for float32
Mask: TypeAlias = Annotated[Any, LEAVES]  # which leaves
Count: TypeAlias = Annotated[int, COUNT]  # >= 1
Natural: TypeAlias = Annotated[int, NATURAL]  # >= 0
Number: TypeAlias = Annotated[Scalar, NUMBER]  # any
Roles: TypeAlias = Annotated[Any, ROLES]  # glob -> how leaves are read as matrices
Glob: TypeAlias = Annotated[str, GLOB]  # over the paths of parameters
Axes: TypeAlias = Annotated[Any, AXES]  # whose devices share work
OtherRule: TypeAlias = Annotated[Any, RULE]  # a rule for some of the leaves


def domain_of(annotation: Any) -> Any:
    """The domain that an annotation names, alone or beside None; None where it names none."""
    if typing.get_origin(annotation) is Annotated:
        return annotation.__metadata__[0]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return None
    return next((d for a in typing.get_args(annotation) if (d := domain_of(a)) is not None), None)


def domains(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of a function that have a domain."""
    hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    found = {name: domain_of(hint) for name, hint in hints.items() if name != "return"}
    return {name: domain for name, domain in found.items() if domain is not None}


def checked(function: _F) -> _F:
    """The function, with its arguments checked against the domains in their types.

    None passes where it is the default, or among the types.

    Raises:
      TypeError: an argument is of another kind.
      ValueError: an argument is of the kind, and out of its domain.
    """
    known, signature = domains(function), inspect.signature(function)
    who, hints = function.__name__, typing.get_type_hints(inspect.unwrap(function), include_extras=True)
    optional = {name for name, hint in hints.items() if type(None) in typing.get_args(hint)}
    optional |= {name for name, p in signature.parameters.items() if p.default is None}

    @functools.wraps(function)
    def construct(*args: Any, **kwargs: Any) -> Any:
        kinds, values = Problems(who), Problems(who)
        with contextlib.suppress(TypeError):  # Python says better what is missing, below
            for name, value in signature.bind(*args, **kwargs).arguments.items():
                if name in known and not (value is None and name in optional):
                    _check(known[name], name, value, kinds, values)
        if kinds.found:
            kinds.found += values.found
        kinds.raise_if_any(TypeError)
        values.raise_if_any(ValueError)
        return function(*args, **kwargs)

    return typing.cast(_F, construct)


def _check(domain: Any, name: str, value: Any, types: Problems, values: Problems) -> None:
    if isinstance(domain, Range):
        number_problem(name, value, domain, types, values)
    else:
        domain.check(name, value, types, values)
