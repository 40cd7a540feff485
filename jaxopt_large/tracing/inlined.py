"""A function with its calls written in their places; loops, branches and codecs stay."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .calls import ByWindow, callee, meaning_of

_STAY = ("scan", "while", "cond", "shard_map")


class Variable:
    """A value of a function that was called."""

    __slots__ = ("aval",)

    def __init__(self, aval: Any):
        self.aval = aval


class Equation(NamedTuple):
    """As JAX has it."""

    primitive: Any
    params: dict[str, Any]
    invars: list[Any]
    outvars: list[Any]


class Inlined(NamedTuple):
    """A jaxpr; its constants are given by name.

    Attributes:
      invars: its inputs.
      eqns: its equations.
      outvars: its results.
      constants: variables that stand for a constant.
    """

    invars: list[Any]
    eqns: list[Equation]
    outvars: list[Any]
    constants: set[Any]


def inlined(jaxpr: Any) -> Inlined:
    """A jaxpr without calls, and without equations of which nobody takes a result.

    Args:
      jaxpr: open: its constants stay variables.
    """
    made: list[Equation] = []
    constants, names = set(jaxpr.constvars), dict[Any, Any]()
    _write(jaxpr, names, made, constants)
    outvars = [a if hasattr(a, "val") else names.get(a, a) for a in jaxpr.outvars]
    used, kept = {a for a in outvars if not hasattr(a, "val")}, []
    for eqn in reversed(made):  # without what nobody takes
        if any(v in used for v in eqn.outvars):
            kept.append(eqn)
            used |= {a for a in eqn.invars if not hasattr(a, "val")}
    return Inlined(list(jaxpr.invars), kept[::-1], outvars, constants)


def _write(jaxpr: Any, names: dict[Any, Any], made: list[Equation], constants: set[Any]) -> None:
    """Writes equations; `names` says what a variable of the function is called outside."""

    def outside(atom: Any) -> Any:
        return atom if hasattr(atom, "val") else names.get(atom, atom)

    fresh: Callable[[Any], Any] = (lambda v: v) if not names else lambda v: Variable(v.aval)
    for eqn in jaxpr.eqns:
        operands = [outside(a) for a in eqn.invars]
        inner = None if eqn.primitive.name in _STAY else callee(eqn)
        if inner is not None and isinstance(meaning_of(eqn), ByWindow) and _is_small(inner.jaxpr):
            inner = None
        if inner is None:
            results = [fresh(v) for v in eqn.outvars]
            names |= {old: new for old, new in zip(eqn.outvars, results, strict=True) if old is not new}
            made.append(Equation(eqn.primitive, eqn.params, operands, results))
            continue
        there: dict[Any, Any] = dict(zip(inner.jaxpr.invars, operands, strict=True))
        for v in inner.jaxpr.constvars:
            there[v] = Variable(v.aval)
            constants.add(there[v])
        there[None] = None  # a call is written with names of its own, even one without operands
        _write(inner.jaxpr, there, made, constants)
        for v, atom in zip(eqn.outvars, inner.jaxpr.outvars, strict=True):
            names[v] = atom if hasattr(atom, "val") else there.get(atom, atom)


def _is_small(jaxpr: Any) -> bool:
    """Is it work on elements and blocks, as codecs do it, without products and loops?"""
    names = {eqn.primitive.name for eqn in jaxpr.eqns}
    return not names & {"dot_general", *_STAY} and all(
        _is_small(inner.jaxpr) for eqn in jaxpr.eqns if (inner := callee(eqn)) is not None
    )
