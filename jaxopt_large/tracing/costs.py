"""What a traced function costs on a mesh: operations, bytes that are alive, what devices send.

A model of what compilers do. Arrays are divided as inputs and constraints say and as equations pass on: a
product over a divided dimension owes a sum, which is done where it is needed, by a reduce-scatter if it is
needed divided. What works element by element is fused with what needs it, and lives only where something
else (a product, a loop, a collective) takes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .._partition import entries
from .alive import Memory
from .demands import demands_of, summed_later
from .inlined import Inlined, inlined
from .layout_rules import Costs, Rules
from .layouts import Dims, Layout, whole

__all__ = ["Costs", "costs_of"]


def costs_of(
    closed: Any,
    inputs: Sequence[Dims],
    results: Sequence[Dims | None],
    sizes: Mapping[str, int],
    *,
    scatters: bool = True,
) -> Costs:
    """What a closed jaxpr costs.

    Args:
      closed: as `jax.make_jaxpr` gives it.
      inputs: how each input is divided.
      results: how each result is to be; None: as it comes.
      sizes: mesh axis -> number of devices.
      scatters: has the compiler reduce-scatters? That for CPUs sums whole arrays, and takes parts later.
    """
    walk = _Walk(sizes, scatters)
    given = [Layout(dims) for dims in inputs]
    walk.quiet = 1  # once to see what is added to what
    walk.through(closed.jaxpr, given, results, 1, 0)
    walk.quiet = 0
    made, walk.costs.alive = walk.through(closed.jaxpr, given, results, 1, 0)
    walk.costs.alive += sum(walk.converted.values())
    walk.costs.results = made
    return walk.costs


class _Walk(Rules):
    """The equations one after another; loops and branches."""

    def __init__(self, sizes: Mapping[str, int], scatters: bool):
        super().__init__(sizes, scatters)
        self._inlined: dict[int, Inlined] = {}
        # bytes of what loops take in another dtype: it is made before them
        self.converted: dict[int, int] = {}

    def through(
        self,
        jaxpr: Any,
        inputs: Sequence[Layout],
        wanted: Sequence[Dims | None],
        rounds: int,
        loops: int,
    ) -> tuple[list[Layout], int]:
        """The layouts of the results, and bytes at the fullest moment."""
        jaxpr = self.inlined(jaxpr)
        found: dict[Any, Layout] = {v: whole(getattr(v.aval, "ndim", 0), free=True) for v in jaxpr.constants}
        found |= zip(jaxpr.invars, inputs, strict=True)
        demands = demands_of(jaxpr, wanted, self.sizes, self.inlined)
        memory = Memory(jaxpr, self, in_loop=loops > 0)
        later = summed_later(jaxpr, demands)
        around, self.already_sent = self.already_sent, {}

        def read(atom: Any) -> Layout:
            if hasattr(atom, "val"):
                return whole(getattr(atom.aval, "ndim", 0), free=True)
            return found[atom]

        for place, eqn in enumerate(jaxpr.eqns):
            before = len(self.costs.sent)
            operands = [read(a) for a in eqn.invars]
            made, inside = self._equation(eqn, operands, [demands.get(v) for v in eqn.outvars], rounds, loops)
            pending = 0
            for n, v in enumerate(eqn.outvars):
                demand, x = demands.get(v), made[n]
                owes = demand is not None and any(a in axes for axes in demand for a in x.owed)
                if demand is not None and (x.free or (owes and v not in later)):
                    named = {a for axes in demand for a in axes}
                    if x.owed:
                        pending += self.bytes(v.aval, x.dims)
                    if x.owed and not self.scatters:
                        made[n] = self.settled(x, v.aval, rounds, loops)
                    else:
                        goal = demand if x.free else _with_axes(x, demand, named)
                        made[n] = self.moved(x, goal, v.aval, rounds, loops)
                found[v] = made[n]
            sends = len(self.costs.sent) > before
            memory.step(place, eqn, found, inside + pending, rounds, sends=sends)
        results = []
        for atom, goal in zip(jaxpr.outvars, wanted, strict=True):
            x = read(atom)
            if goal is not None and len(goal) == len(x.dims):
                x = self.moved(x, goal, atom.aval, rounds, loops)
            results.append(self.settled(x, atom.aval, rounds, loops))
        self.already_sent = around
        return results, memory.peak

    def inlined(self, jaxpr: Any) -> Inlined:
        """A function without calls, made once."""
        if id(jaxpr) not in self._inlined:
            self._inlined[id(jaxpr)] = inlined(jaxpr)
        return self._inlined[id(jaxpr)]

    def _equation(
        self, eqn: Any, operands: list[Layout], demands: list[Dims | None], rounds: int, loops: int
    ) -> tuple[list[Layout], int]:
        name = eqn.primitive.name
        rule = getattr(self, f"_on_{name.replace('-', '_')}", None)
        if name == "scan":
            return self._scan(eqn, operands, demands, rounds, loops)
        if name == "while":
            return self._while(eqn, operands, rounds, loops)
        if name == "cond":
            return self._cond(eqn, operands, demands, rounds, loops)
        if name == "shard_map":
            return self._shard_map(eqn, operands, rounds, loops)
        if rule is not None:
            return rule(eqn, operands, demands, rounds, loops), 0
        return self._by_elements(eqn, operands, rounds, loops), 0

    def _shard_map(
        self, eqn: Any, operands: list[Layout], rounds: int, loops: int
    ) -> tuple[list[Layout], int]:
        p = eqn.params
        manual = set(p.get("manual_axes") or p["mesh"].axis_names)
        given = []
        for x, spec, a in zip(operands, p["in_specs"], eqn.invars, strict=True):
            goal = tuple(entries(spec, len(x.dims)))
            mine = tuple(
                (*(a for a in new if a in manual), *(a for a in old if a not in manual))
                for new, old in zip(goal, x.dims, strict=True)
            )
            placed = self.settled(self.moved(x, mine, a.aval, rounds, loops), a.aval, rounds, loops)
            given.append(Layout(tuple(tuple(n for n in axes if n not in manual) for axes in placed.dims)))
        inner = getattr(p["jaxpr"], "jaxpr", p["jaxpr"])
        made, alive = self.through(inner, given, [None] * len(inner.outvars), rounds, loops)
        results = [
            Layout(tuple((*new, *old) for new, old in zip(entries(spec, len(x.dims)), x.dims, strict=True)))
            for x, spec in zip(made, p["out_specs"], strict=True)
        ]
        return results, alive

    def _scan(
        self, eqn: Any, operands: list[Layout], demands: list[Dims | None], rounds: int, loops: int
    ) -> tuple[list[Layout], int]:
        p = eqn.params
        n, m, body = p["num_consts"], p["num_consts"] + p["num_carry"], p["jaxpr"]
        avals = [a.aval for a in eqn.invars]
        consts = operands[:n]
        carry = [self.settled(x, a, rounds, loops) for x, a in zip(operands[n:m], avals[n:m], strict=True)]
        xs = []
        for x, a in zip(operands[m:], avals[m:], strict=True):
            x = self.settled(self.moved(x, ((), *x.dims[1:]), a, rounds, loops), a, rounds, loops)
            xs.append(Layout(x.dims[1:], (), x.free))
        for atom, v, x in zip(eqn.invars[m:], self.inlined(body.jaxpr).invars[m:], xs, strict=True):
            uses = [e for e in self.inlined(body.jaxpr).eqns if any(v is a for a in e.invars)]
            narrow = {e.params["new_dtype"] for e in uses if e.primitive.name == "convert_element_type"}
            if (
                len(narrow) == 1
                and len(uses) == 1
                and (dtype := narrow.pop()).itemsize < v.aval.dtype.itemsize
            ):
                stack = self.bytes(atom.aval, ((), *x.dims))
                self.converted[id(atom)] = stack * dtype.itemsize // v.aval.dtype.itemsize
        kept = m - n
        ends = [None if d is None else d[1:] for d in demands[kept:]]
        inner = body.jaxpr
        carry = [
            Layout(d) if x.free and d is not None else x for x, d in zip(carry, demands[:kept], strict=True)
        ]

        def once(carry: list[Layout], rounds: int) -> tuple[list[Layout], int]:
            wanted = [None if x.free else x.dims for x in carry]
            given = [x._replace(free=False) if not x.free else x for x in carry]
            return self.through(inner, [*consts, *given, *xs], [*wanted, *ends], rounds, loops + 1)

        self.quiet += 1
        for _ in range(3):  # constants take the layout of what replaces them
            made, _peak = once(carry, 1)
            new = [y if x.free else x for x, y in zip(carry, made[:kept], strict=True)]
            if new == carry:
                break
            carry = new
        self.quiet -= 1
        carry = [x._replace(free=False) for x in carry]
        made, alive = once(carry, rounds * p["length"])
        stacked = [Layout(((), *y.dims)) for y in made[kept:]]
        return [*carry, *stacked], alive

    def _while(self, eqn: Any, operands: list[Layout], rounds: int, loops: int) -> tuple[list[Layout], int]:
        p = eqn.params
        n, m, body = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"], p["body_jaxpr"]
        carry = [x._replace(free=False) for x in operands[m:]]
        wanted = [x.dims for x in carry]
        _, alive = self.through(body.jaxpr, [*operands[n:m], *carry], wanted, rounds, loops + 1)
        return carry, alive

    def _cond(
        self, eqn: Any, operands: list[Layout], demands: list[Dims | None], rounds: int, loops: int
    ) -> tuple[list[Layout], int]:
        """The first branch; of the others only what they need of memory."""
        peaks, results = [], None
        for branch in eqn.params["branches"]:
            self.quiet += results is not None
            made, alive = self.through(branch.jaxpr, operands[1:], demands, rounds, loops)
            self.quiet -= results is not None
            results = results or made
            peaks.append(alive)
        return results or [], max(peaks, default=0)


def _with_axes(x: Layout, demand: Dims, named: set[str]) -> Dims:
    """`x` as it is, and divided by what it owes where that is demanded."""
    owed = {a for a in x.owed if a in named}
    return tuple(
        tuple(dict.fromkeys((*old, *(a for a in new if a in owed))))
        for old, new in zip(x.dims, demand, strict=True)
    )
