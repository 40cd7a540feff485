"""How values are wanted in the end: what constraints and results say, followed back through the equations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._partition import entries
from .inlined import Inlined
from .layouts import Dims, refines, reshaped
from .primitives import known

SUMS = "add add_any sub"
_HANDED = "neg reshape transpose squeeze"


def demands_of(
    jaxpr: Inlined, wanted: Sequence[Dims | None], sizes: Mapping[str, int], inside: Callable[[Any], Inlined]
) -> dict[Any, Dims]:
    """How each variable is to be divided in the end, as far as constraints and results tell."""
    found: dict[Any, Dims] = {}

    def want(atom: Any, dims: Dims | None) -> None:
        if dims is None or hasattr(atom, "val") or len(dims) != getattr(atom.aval, "ndim", -1):
            return
        old = found.get(atom)
        if old is None or sum(map(len, dims)) > sum(map(len, old)):
            found[atom] = dims

    for atom, dims in zip(jaxpr.outvars, wanted, strict=True):
        want(atom, dims)
    for eqn in reversed(jaxpr.eqns):
        outs = [found.get(v) for v in eqn.outvars]
        name = eqn.primitive.name
        if name in ("sharding_constraint", "reshard"):
            goal, demand = goal_of(eqn), outs[0]
            deeper = demand is not None and goal is not None and refines(demand, goal)
            want(eqn.invars[0], demand if deeper else goal)
            continue
        if all(d is None for d in outs):
            continue
        shape = getattr(eqn.outvars[0].aval, "shape", ())
        if name == "transpose":
            order = eqn.params["permutation"]
            want(eqn.invars[0], tuple(outs[0][order.index(d)] for d in range(len(order))))  # type: ignore[index]
        elif name == "reshape":
            want(eqn.invars[0], reshaped(outs[0], shape, eqn.invars[0].aval.shape, sizes))  # type: ignore[arg-type]
        elif name == "optimization_barrier":
            for a, d in zip(eqn.invars, outs, strict=True):
                want(a, d)
        elif name == "scan":
            p = eqn.params
            n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
            kept = m - n
            inner = p["jaxpr"].jaxpr
            ends = [*outs[:kept], *(None if d is None else d[1:] for d in outs[kept:])]
            below = demands_of(inside(inner), ends, sizes, inside)
            for k, (a, v) in enumerate(zip(eqn.invars, inner.invars, strict=True)):
                d = below.get(v)
                want(a, d if k < m or d is None else ((), *d))
            for a, d in zip(eqn.invars[n:m], outs[:kept], strict=True):
                want(a, d)
        elif known(eqn).element:
            for a in eqn.invars:
                if getattr(a.aval, "shape", None) == shape:
                    want(a, outs[0])
    return found


def summed_later(jaxpr: Inlined, demands: Mapping[Any, Dims]) -> set[Any]:
    """What is only added up, or handed on, to something else that is wanted divided: one sum does for all."""
    takers: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for a in eqn.invars:
            if not hasattr(a, "val"):
                takers.setdefault(a, []).append(eqn)
    linear = {*SUMS.split(), *_HANDED.split()}
    results = {a for a in jaxpr.outvars if not hasattr(a, "val")}
    return {
        v
        for v, some in takers.items()
        if v not in results and all(e.primitive.name in linear and e.outvars[0] in demands for e in some)
    }


def goal_of(eqn: Any) -> Dims | None:
    """How a constraint divides its result; None where it does not say."""
    sharding = eqn.params.get("sharding", eqn.params.get("dst_sharding"))
    spec = getattr(sharding, "spec", None)
    rank = eqn.outvars[0].aval.ndim
    return None if spec is None else tuple(entries(spec, rank))
