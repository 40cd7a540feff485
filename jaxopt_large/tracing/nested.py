"""Functions inside functions: loops, branches, mapped axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._partition import entries
from .alive import Alive
from .demands import SUMS
from .hoisted import narrowed
from .inlined import Inlined, inlined
from .layout_rules import Costs, Rules
from .layouts import Dims, Layout, whole


class Nested(Rules):
    """What stands in an equation is walked through as often as it runs."""

    def __init__(self, sizes: Mapping[str, int], scatters: bool, fast: int):
        super().__init__(sizes, scatters)
        self.fast = fast  # bytes of memory that is faster
        self.donated = False  # are the results of the next function made in the place of its inputs?
        self._inlined: dict[int, Inlined] = {}
        self._narrowed: dict[int, dict[Any, Any]] = {}
        self.slices: set[Any] = set()  # of stacks, as loops are given them
        self.constants: set[Any] = set()  # what is made of nothing, wherever it is wanted
        self.rounds = [1]  # how often what stands in so many loops runs
        # bytes of what loops take that is made before them
        self.held: dict[Any, int] = {}
        self.sent_narrow: set[Any] = set()  # what has come in a narrower dtype
        self.path: tuple[int, ...] = ()  # the loops at hand
        self.origins: dict[Any, Any] = {}  # what a loop's constants are called outside

    def through(
        self,
        jaxpr: Any,
        inputs: Sequence[Layout],
        wanted: Sequence[Dims | None],
        levels: Sequence[int],
        owing: Sequence[int] = (),
    ) -> tuple[list[Layout], Alive]:
        """The layouts of the results, and bytes at the fullest moment.

        Args:
          jaxpr: the function.
          inputs: layouts.
          wanted: of the results; None: as they come.
          levels: in how many loops each input changes.
          owing: the results whose sums are done later.
        """
        raise NotImplementedError

    def placed(self, size: int, *, is_temporary: bool = True) -> Alive:
        """Where an array of so many bytes is."""
        return Alive(small=size) if is_temporary and size <= self.fast else Alive(size)

    def inlined(self, jaxpr: Any) -> Inlined:
        """A function without calls, made once."""
        if id(jaxpr) not in self._inlined:
            self._inlined[id(jaxpr)] = inlined(jaxpr)
        return self._inlined[id(jaxpr)]

    def narrowed(self, jaxpr: Inlined) -> dict[Any, Any]:
        """The dtypes of what is taken in a narrower one, found once."""
        if id(jaxpr) not in self._narrowed:

            def inside(body: Any) -> list[Any]:
                inner = self.inlined(body)
                return [self.narrowed(inner).get(v) for v in inner.invars]

            self._narrowed[id(jaxpr)] = narrowed(jaxpr, inside)
        return self._narrowed[id(jaxpr)]

    def origin(self, atom: Any) -> Any:
        """What a variable is called where it is made."""
        while atom in self.origins:
            atom = self.origins[atom]
        return atom

    def _in_loop(self, eqn: Any, times: int, *args: Any) -> tuple[list[Layout], Alive]:
        """`through`, of what a loop does so often."""
        around = self.path
        self.rounds.append(self.rounds[-1] * times)
        self.path = (*around, id(eqn))
        found = self.through(*args)
        self.rounds.pop()
        self.path = around
        return found

    def _on_shard_map(
        self, eqn: Any, operands: list[Layout], levels: list[int], rounds: int, loops: int
    ) -> tuple[list[Layout], Alive]:
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
        made, alive = self.through(inner, given, [None] * len(inner.outvars), levels)
        results = [
            Layout(tuple((*new, *old) for new, old in zip(entries(spec, len(x.dims)), x.dims, strict=True)))
            for x, spec in zip(made, p["out_specs"], strict=True)
        ]
        return results, alive

    def _on_scan(
        self,
        eqn: Any,
        operands: list[Layout],
        demands: list[Dims | None],
        levels: list[int],
        rounds: int,
        loops: int,
    ) -> tuple[list[Layout], Alive]:
        p = eqn.params
        n, m, body = p["num_consts"], p["num_consts"] + p["num_carry"], p["jaxpr"].jaxpr
        avals, kept = [a.aval for a in eqn.invars], m - n
        carry = [self.settled(x, a, rounds, loops) for x, a in zip(operands[n:m], avals[n:m], strict=True)]
        xs = []
        for x, a in zip(operands[m:], avals[m:], strict=True):
            x = self.settled(self.moved(x, ((), *x.dims[1:]), a, rounds, loops), a, rounds, loops)
            xs.append(Layout(x.dims[1:], (), x.free))
        inner = self.inlined(body)
        self.slices |= {*inner.invars[m:]}
        narrow = self.narrowed(inner)
        for atom, v, x in zip(eqn.invars[m:], inner.invars[m:], xs, strict=True):
            if v in narrow:  # made before the loop
                stack = self.bytes(atom.aval, ((), *x.dims))
                key = "convert", str(narrow[v]), self.path, self.origin(atom)
                self.held[key] = stack * narrow[v].itemsize // v.aval.dtype.itemsize
        self.origins |= {
            v: a
            for v, a in zip(inner.invars[:n], eqn.invars[:n], strict=True)
            if not hasattr(a, "val") and v is not a
        }
        ends = [None if d is None else d[1:] for d in demands[kept:]]
        owing = [
            k
            for k, a in enumerate(eqn.invars[n:m])
            if self.scatters and not hasattr(a, "val") and a in self.constants and _adds_up(inner, n + k, k)
        ]
        carry = [whole(len(x.dims), free=True) if k in owing else x for k, x in enumerate(carry)]
        carry = [
            Layout(d) if x.free and d is not None and k not in owing else x
            for k, (x, d) in enumerate(zip(carry, demands[:kept], strict=True))
        ]
        if not p["length"]:
            stacks = [whole(v.aval.ndim) for v in eqn.outvars[kept:]]
            return [*(x._replace(free=False) for x in carry), *stacks], Alive()
        changing = [loops + 1] * (len(operands) - n)

        def once(carry: list[Layout]) -> tuple[list[Layout], Alive]:
            wanted = [None if x.free or k in owing else x.dims for k, x in enumerate(carry)]
            given = [*operands[:n], *carry, *xs]
            return self._in_loop(
                eqn, p["length"], body, given, [*wanted, *ends], [*levels[:n], *changing], owing
            )

        self.quiet += 1
        for _ in range(3):  # constants take the layout of what replaces them
            made, _peak = once(carry)
            new = [
                y if x.free or k in owing else x for k, (x, y) in enumerate(zip(carry, made, strict=False))
            ]
            if new == carry:
                break
            carry = new
        self.quiet -= 1
        carry = [x._replace(free=False) for x in carry]
        made, alive = once(carry)
        for k in owing:  # added up in the loop, and summed over devices right after it
            demand = demands[k]
            goal = carry[k].dims if demand is None else with_axes(carry[k], demand)
            x = self.moved(carry[k], goal, avals[n + k], rounds, loops)
            carry[k] = self.settled(x, avals[n + k], rounds, loops)
        return [*carry, *(Layout(((), *y.dims)) for y in made[kept:])], alive

    def _on_while(self, eqn: Any, operands: list[Layout], levels: list[int]) -> tuple[list[Layout], Alive]:
        p = eqn.params
        n, m, body = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"], p["body_jaxpr"]
        carry = [x._replace(free=False) for x in operands[m:]]
        changing = [len(self.rounds)] * len(carry)
        _, alive = self._in_loop(
            eqn,
            1,
            body.jaxpr,
            [*operands[n:m], *carry],
            [x.dims for x in carry],
            [*levels[n:m], *changing],
        )
        return carry, alive

    def _on_cond(
        self, eqn: Any, operands: list[Layout], demands: list[Dims | None], levels: list[int]
    ) -> tuple[list[Layout], Alive]:
        """The branch that costs most; of the others only what they need of memory."""
        found, around = [], self.costs
        for branch in eqn.params["branches"]:
            self.costs = Costs()
            made, alive = self.through(branch.jaxpr, operands[1:], demands, levels[1:])
            found.append((made, alive, self.costs))
        self.costs = around
        # of equal ones the last
        results, _, most = max(reversed(found), key=lambda x: (_bytes_sent(x[2]), x[2].flops))
        if not self.quiet:
            around.sent += most.sent
            around.flops, around.traffic = around.flops + most.flops, around.traffic + most.traffic
        return results, max((alive for _, alive, _ in found), key=lambda x: x.fullness(self.fast))


def _bytes_sent(costs: Costs) -> int:
    return sum(x.bytes * x.rounds for x in costs.sent)


def with_axes(x: Layout, demand: Dims) -> Dims:
    """`x` as it is, and divided by what it owes where that is demanded."""
    owed = {a for a in x.owed if any(a in axes for axes in demand)}
    return tuple(
        tuple(dict.fromkeys((*old, *(a for a in new if a in owed))))
        for old, new in zip(x.dims, demand, strict=True)
    )


def _adds_up(body: Inlined, given: int, made: int) -> bool:
    """Does a loop no more than add to what it hands on?"""
    v, out = body.invars[given], body.outvars[made]
    takers = [eqn for eqn in body.eqns if any(v is a for a in eqn.invars)]
    return len(takers) == 1 and takers[0].primitive.name in SUMS.split() and takers[0].outvars[0] is out
