"""Calls in a traced function: what they call, and those that say what they are.

A jaxpr carries of a call no more than its name. A function that others must be able to find in a trace is
registered here under a name that no other function has; whoever reads the trace asks for what was
registered with it.
"""

import dataclasses
import threading
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_PREFIX = "jaxopt_large"

_one_at_a_time = threading.Lock()
_registered: dict[str, tuple[Any, Any]] = {}  # name -> what tells functions apart, what the call means


class ByWindow:
    """Base of the meanings of calls that know which part of a whole array they have."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Opaque:
    """The meaning of a call that nobody takes apart."""

    what: str


def named_call(
    function: Callable[..., Any], name: str, identity: Any, meaning: Any, static_argnums: Any = ()
) -> Callable[..., Any]:
    """A jit of `function` that `meaning_of` recognizes; functions of equal identity share a name.

    Args:
      function: with arrays in and out.
      name: how the call's name begins, for those who read programs.
      identity: all that distinguishes it from other functions of that name.
      meaning: what `meaning_of` answers; not None.
      static_argnums: as `jax.jit` has them.
    """
    full = f"{_PREFIX}_{name}_{zlib.crc32(repr(identity).encode()):08x}"
    with _one_at_a_time:
        while full in _registered and _registered[full][0] != identity:  # another of equal looks
            full += "_"
        _registered[full] = identity, meaning
    function.__name__ = function.__qualname__ = full
    return jax.jit(function, static_argnums=static_argnums)


def meaning_of(equation: Any) -> Any:
    """What was registered with the function that an equation calls; None for all other equations."""
    if "jaxpr" not in equation.params:
        return None
    return _registered.get(str(equation.params.get("name", "")), (None, None))[1]


class Callee(NamedTuple):
    """What an equation calls."""

    jaxpr: Any
    constants: tuple[Any, ...]


def callee(equation: Any) -> Callee | None:
    """The function that an equation calls with all its operands; None where it calls none.

    Reductions and scatters have a function too, but of elements.
    """
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = equation.params.get(key)
        if inner is not None:
            jaxpr = getattr(inner, "jaxpr", inner)
            ranks = [[getattr(v.aval, "ndim", 0) for v in vs] for vs in (jaxpr.invars, equation.invars)]
            return Callee(jaxpr, tuple(getattr(inner, "consts", ()))) if ranks[0] == ranks[1] else None
    return None
