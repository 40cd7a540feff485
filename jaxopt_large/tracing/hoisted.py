"""What compilers take out of loops: what is made of a loop's constants alone is made before it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .inlined import Inlined
from .primitives import known

_STAY = ("scan", "while", "cond", "shard_map", "optimization_barrier")
_PLACES = ("gather", "sharding_constraint", "reshard")  # elements stay what they are


def levels_of(jaxpr: Inlined, given: Sequence[int], here: int) -> dict[Any, int]:
    """In how many loops each variable changes.

    Args:
      jaxpr: the function.
      given: of its inputs.
      here: in how many loops the function stands.
    """
    found: dict[Any, int] = dict.fromkeys(jaxpr.constants, 0) | dict(zip(jaxpr.invars, given, strict=True))
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        moves = name not in _STAY and not known(eqn).random
        level = max((found[a] for a in eqn.invars if not hasattr(a, "val")), default=0) if moves else here
        found |= dict.fromkeys(eqn.outvars, level)
    return found


def handed_in(jaxpr: Inlined, levels: Mapping[Any, int], here: int) -> set[Any]:
    """Of what is made before the loops that the function stands in, what they then take."""
    taken = {a for a in jaxpr.outvars if not hasattr(a, "val")}
    for eqn in jaxpr.eqns:
        if any(levels[v] == here for v in eqn.outvars):
            taken |= {a for a in eqn.invars if not hasattr(a, "val")}
    return {v for eqn in jaxpr.eqns for v in eqn.outvars if levels[v] < here and v in taken}


def narrowed(jaxpr: Inlined, inside: Callable[[Any], Sequence[Any]]) -> dict[Any, Any]:
    """The dtypes of variables that are taken in a narrower one: compilers send them in that.

    Args:
      jaxpr: the function.
      inside: the jaxpr of a loop's body -> what this function says of its inputs.
    """
    found: dict[Any, Any] = {}  # None: as it is
    results = {a for a in jaxpr.outvars if not hasattr(a, "val")}
    takers: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for n, a in enumerate(eqn.invars):
            if not hasattr(a, "val"):
                takers.setdefault(a, []).append((eqn, n))
    variables = [*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars)]
    for v in reversed(variables):
        wanted = set() if v in results else {_taken_as(eqn, n, found, inside) for eqn, n in takers.get(v, ())}
        dtype = wanted.pop() if len(wanted) == 1 else None
        old = getattr(v.aval, "dtype", None)
        found[v] = dtype if dtype is not None and old is not None and dtype.itemsize < old.itemsize else None
    return {v: dtype for v, dtype in found.items() if dtype is not None}


def _taken_as(eqn: Any, place: int, found: Mapping[Any, Any], inside: Callable[[Any], Sequence[Any]]) -> Any:
    """The dtype in which an equation takes an operand; None: its own."""
    name = eqn.primitive.name
    if name == "convert_element_type":
        return eqn.params["new_dtype"]
    row = known(eqn)
    if place == 0 and (row.moves or name in _PLACES):
        return found.get(eqn.outvars[0])
    if name == "scan":
        p = eqn.params
        if p["num_consts"] <= place < p["num_consts"] + p["num_carry"]:
            return None
        return inside(p["jaxpr"].jaxpr)[place]
    return None
