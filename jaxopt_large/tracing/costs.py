"""What a traced function costs on a mesh: operations, bytes that are alive, what devices send.

A model of what compilers do. Arrays are divided as inputs and constraints say and as equations pass on: a
product over a divided dimension owes a sum, which is done where it is needed, by a reduce-scatter if it is
needed divided. What works element by element is fused with what needs it, and lives only where something
else (a product, a loop, a collective) takes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from .alive import Alive
from .demands import demands_of, summed_later
from .hoisted import handed_in, levels_of
from .layout_rules import Costs
from .layouts import Dims, Layout, whole
from .memory import Memory
from .nested import Nested, with_axes

__all__ = ["Costs", "costs_of"]


def costs_of(
    closed: Any,
    inputs: Sequence[Dims],
    results: Sequence[Dims | None],
    sizes: Mapping[str, int],
    *,
    scatters: bool = True,
    fast: int = 0,
    donated: bool = False,
) -> Costs:
    """What a closed jaxpr costs.

    Args:
      closed: as `jax.make_jaxpr` gives it.
      inputs: how each input is divided.
      results: how each result is to be; None: as it comes.
      sizes: mesh axis -> number of devices.
      scatters: has the compiler reduce-scatters? That for CPUs sums whole arrays, and takes parts later.
      fast: bytes of faster memory that a device has for what lives shortly.
      donated: are results made in the place of inputs?
    """
    walk = _Walk(sizes, scatters, fast)
    given = [Layout(dims) for dims in inputs]
    levels = [0] * len(given)
    walk.quiet = 1  # once to see what is added to what
    walk.through(closed.jaxpr, given, results, levels)
    walk.quiet = 0
    walk.held.clear()
    walk.donated = donated
    made, alive = walk.through(closed.jaxpr, given, results, levels)
    walk.costs.alive = alive.beside(fast) + sum(walk.held.values())
    walk.costs.results = made
    return walk.costs


class _Walk(Nested):
    """The equations one after another."""

    def through(
        self,
        jaxpr: Any,
        inputs: Sequence[Layout],
        wanted: Sequence[Dims | None],
        levels: Sequence[int],
        owing: Sequence[int] = (),
    ) -> tuple[list[Layout], Alive]:
        jaxpr, here = self.inlined(jaxpr), len(self.rounds) - 1
        found: dict[Any, Layout] = {v: whole(getattr(v.aval, "ndim", 0), free=True) for v in jaxpr.constants}
        found |= zip(jaxpr.invars, inputs, strict=True)
        demands = demands_of(jaxpr, wanted, self.sizes, self.inlined)
        level = levels_of(jaxpr, levels, here)
        memory = Memory(jaxpr, self, handed_in(jaxpr, level, here), in_loop=here > 0, donated=self.donated)
        later = summed_later(jaxpr, demands)
        around = self.already_sent, self.narrow, self.donated, self.sums
        self.already_sent, self.narrow, self.donated, self.sums = {}, self.narrowed(jaxpr), False, {}

        def read(atom: Any) -> Layout:
            if hasattr(atom, "val"):
                return whole(getattr(atom.aval, "ndim", 0), free=True)
            return self.sums.get(atom, found[atom])

        for place, eqn in enumerate(jaxpr.eqns):
            before = len(self.costs.sent)
            operands = [read(a) for a in eqn.invars]
            loops = max((level[v] for v in eqn.outvars), default=here)
            rounds = self.rounds[loops]
            of = [0 if hasattr(a, "val") else level[a] for a in eqn.invars]
            made, inside = self._equation(
                eqn, operands, [demands.get(v) for v in eqn.outvars], of, rounds, loops
            )
            pending = Alive()
            for n, v in enumerate(eqn.outvars):
                demand, x = demands.get(v), made[n]
                if x.free:
                    self.constants.add(v)
                owes = demand is not None and any(a in axes for axes in demand for a in x.owed)
                if demand is not None and (x.free or (owes and v not in later)):
                    if x.owed:
                        pending += self.placed(self.bytes(v.aval, x.dims))
                    if x.owed and not self.scatters:
                        made[n] = self.settled(x, v.aval, rounds, loops)
                    else:
                        goal = demand if x.free else with_axes(x, demand)
                        made[n] = self.moved(x, goal, v.aval, rounds, loops)
                found[v] = made[n]
            sends = len(self.costs.sent) > before
            memory.step(place, eqn, found, inside + pending, rounds, sends=sends)
        results = []
        for n, (atom, goal) in enumerate(zip(jaxpr.outvars, wanted, strict=True)):
            x = read(atom)
            if goal is not None and len(goal) == len(x.dims):
                x = self.moved(x, goal, atom.aval, self.rounds[here], here)
            results.append(x if n in owing else self.settled(x, atom.aval, self.rounds[here], here))
        self.already_sent, self.narrow, self.donated, self.sums = around
        return results, memory.peak

    def _equation(
        self,
        eqn: Any,
        operands: list[Layout],
        demands: list[Dims | None],
        levels: list[int],
        rounds: int,
        loops: int,
    ) -> tuple[list[Layout], Alive]:
        name = eqn.primitive.name
        if name == "scan":
            return self._on_scan(eqn, operands, demands, levels, rounds, loops)
        if name == "while":
            return self._on_while(eqn, operands, levels)
        if name == "cond":
            return self._on_cond(eqn, operands, demands, levels)
        if name == "shard_map":
            return self._on_shard_map(eqn, operands, levels, rounds, loops)
        rule = getattr(self, f"_on_{name.replace('-', '_')}", None)
        if rule is not None:
            return rule(eqn, operands, demands, rounds, loops), Alive()
        return self._by_elements(eqn, operands, rounds, loops), Alive()
