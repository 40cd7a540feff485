"""What a traced function costs on a mesh: operations, bytes that are alive, what devices send.

A model of what compilers do. Arrays are divided as inputs and constraints say and as equations pass on: a
product over a divided dimension owes a sum, which is done where it is needed, by a reduce-scatter if it is
needed divided. What works element by element is fused with what needs it, and lives only where something
else (a product, a loop, a collective) takes it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from .._partition import entries
from .inlined import Inlined, inlined
from .layouts import Dims, Layout, Sent, joined, local_elements, longer, refines, reshaped, whole
from .primitives import known

_FAST = 2**27  # bytes: what is smaller can stay in a chip's fast memory
_SUMS = "add add_any sub"
_HANDED = "neg reshape transpose squeeze"
_LINEAR = "add sub neg mul div convert_element_type add_any copy reduce_precision"  # pass on what is owed


@dataclasses.dataclass
class Costs:
    """Of one call, on one device.

    Attributes:
      flops: operations of matrix products.
      traffic: bytes to and from memory, of arrays that are too large to stay in faster memory.
      alive: bytes at the fullest moment, inputs not counted.
      sent: collectives.
      results: how each result is divided.
    """

    flops: float = 0.0
    traffic: float = 0.0
    alive: int = 0
    sent: list[Sent] = dataclasses.field(default_factory=list)
    results: list[Layout] = dataclasses.field(default_factory=list)


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


class _Walk:
    def __init__(self, sizes: Mapping[str, int], scatters: bool):
        self._scatters = scatters
        self.sizes, self.costs, self.quiet = sizes, Costs(), 0
        self._sent: dict[Any, Layout] = {}  # what is sent already, in the function at hand
        self._inlined: dict[int, Inlined] = {}
        self.converted: dict[
            int, int
        ] = {}  # bytes of what loops take in another dtype: it is made before them
        self._beside: dict[Any, Dims] = {}  # how what a variable is added to, or multiplied by, is divided

    # --- sizes ----------------------------------------------------------------------------------------

    def bytes(self, aval: Any, dims: Dims) -> int:
        """Of one device's part of an array."""
        if not hasattr(aval, "dtype") or not hasattr(aval.dtype, "itemsize"):
            return 0
        bits = 4 if "int4" in str(aval.dtype) else aval.dtype.itemsize * 8
        return local_elements(aval.shape, dims, self.sizes) * bits // 8

    def send(self, kind: str, axes: Any, size: int, rounds: int, loops: int) -> None:
        axes = tuple(a for a in self.sizes if a in axes and self.sizes[a] > 1)
        if axes and not self.quiet:
            self.costs.sent.append(Sent(kind, axes, size, rounds, loops))

    def sent(self, atom: Any, x: Layout, dims: Dims, rounds: int, loops: int) -> Layout:
        """A variable divided otherwise, once: compilers see that it is wanted twice."""
        key = (id(atom), dims)
        if key not in self._sent:
            self._sent[key] = self.moved(x, dims, atom.aval, rounds, loops)
        return self._sent[key]

    def moved(self, x: Layout, dims: Dims, aval: Any, rounds: int, loops: int) -> Layout:
        """An array divided otherwise; what it owes over axes that do not divide it then stays owed."""
        if x.free:
            return Layout(dims)
        named = {a for axes in dims for a in axes}
        scattered = [a for a in x.owed if a in named]
        kept = tuple(tuple(a for a in axes if a not in scattered) for axes in dims)
        if scattered:
            kind = "reduce-scatter" if self._scatters else "all-reduce"
            self.send(kind, scattered, self.bytes(aval, kept), rounds, loops)
        gone = [a for a in x.axes if a not in named]
        wandered = [a for dim, axes in enumerate(x.dims) for a in axes if a in named and a not in dims[dim]]
        if wandered:
            self.send("all-to-all", wandered, self.bytes(aval, x.dims), rounds, loops)
        if gone:
            partly = tuple(tuple(a for a in axes if a not in scattered) for axes in dims)
            self.send("all-gather", gone, self.bytes(aval, partly), rounds, loops)
        return Layout(dims, tuple(a for a in x.owed if a not in scattered))

    def settled(self, x: Layout, aval: Any, rounds: int, loops: int) -> Layout:
        """An array of which all sums are done."""
        if x.owed:
            self.send("all-reduce", x.owed, self.bytes(aval, x.dims), rounds, loops)
        return Layout(x.dims, (), x.free)

    # --- equations ------------------------------------------------------------------------------------

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
        demands = self.demands(jaxpr, wanted)
        memory = _Memory(jaxpr, self, in_loop=loops > 0)
        later = _summed_later(jaxpr, demands)
        around, self._sent = self._sent, {}

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
                    if x.owed and not self._scatters:
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
        self._sent = around
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

    def _by_elements(self, eqn: Any, operands: list[Layout], rounds: int, loops: int) -> list[Layout]:
        """Element by element, or not known: divided as operands of the result's shape are."""
        shape = getattr(eqn.outvars[0].aval, "shape", ())
        same = [
            (a, x) for a, x in zip(eqn.invars, operands, strict=True) if getattr(a.aval, "shape", ()) == shape
        ]
        linear = eqn.primitive.name in _LINEAR.split()
        if not linear:
            same = [(a, self.settled(x, a.aval, rounds, loops)) for a, x in same]
        elif eqn.primitive.name in _SUMS.split() and any(x.owed for _, x in same):
            most = joined([x for _, x in same])
            if any(set(x.owed) != set(most.owed) for _, x in same if not x.free):
                same = [
                    (a, self.settled(self.moved(x, most.dims, a.aval, rounds, loops), a.aval, rounds, loops))
                    for a, x in same
                ]
        if not same:
            return [self._alike(eqn, operands, v) for v in eqn.outvars]
        if len(same) == len(eqn.outvars) > 1 and known(eqn).handed:
            return [x for _, x in same]
        if known(eqn).handed and len(eqn.outvars) == len(operands):
            return operands
        out = joined([x for _, x in same])
        for a, x in same:
            if not hasattr(a, "val") and x.dims != out.dims and refines(out.dims, x.dims):
                self._beside[a] = out.dims
        return [
            out if getattr(v.aval, "shape", None) == shape else whole(getattr(v.aval, "ndim", 0))
            for v in eqn.outvars
        ]

    def _alike(self, eqn: Any, operands: list[Layout], v: Any) -> Layout:
        """What is made of arrays of another shape: the dimensions that have their length stay divided."""
        shape, free = getattr(v.aval, "shape", ()), all(x.free for x in operands)
        for a, x in zip(eqn.invars, operands, strict=True):
            if shape and len(x.dims) == len(shape) and not x.free:
                dims = zip(x.dims, a.aval.shape, shape, strict=True)
                return Layout(tuple(axes if n == m else () for axes, n, m in dims))
        return whole(len(shape), free=free)

    def _on_sharding_constraint(
        self, eqn: Any, operands: list[Layout], demands: list[Dims | None], rounds: int, loops: int
    ) -> list[Layout]:
        goal = _target(eqn)
        (x,), demand = operands, demands[0]
        if goal is None:
            return operands
        if demand is not None and refines(demand, goal) and (x.free or refines(x.dims, demand)):
            return [Layout(demand, x.owed) if x.free else x]
        return [self.sent(eqn.invars[0], x, goal, rounds, loops)]

    _on_reshard = _on_sharding_constraint

    def _on_optimization_barrier(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        return operands

    def _on_iota(self, eqn: Any, *_: Any) -> list[Layout]:
        return [whole(eqn.outvars[0].aval.ndim, free=True)]

    def _on_broadcast_in_dim(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        (out,), x, places = eqn.outvars, operands[0], eqn.params["broadcast_dimensions"]
        dims = [()] * out.aval.ndim
        for dim, place in enumerate(places):
            if eqn.invars[0].aval.shape[dim] == out.aval.shape[place]:
                dims[place] = x.dims[dim]
        return [Layout(tuple(dims), x.owed, x.free)]

    def _on_reshape(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        x = operands[0]
        dims = reshaped(x.dims, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, self.sizes)
        return [Layout(dims, x.owed, x.free)]

    def _on_transpose(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        x = operands[0]
        return [Layout(tuple(x.dims[d] for d in eqn.params["permutation"]), x.owed, x.free)]

    def _on_squeeze(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        x, gone = operands[0], eqn.params["dimensions"]
        return [Layout(tuple(a for d, a in enumerate(x.dims) if d not in gone), x.owed, x.free)]

    def _reduced(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int, *, sums: bool = False
    ) -> list[Layout]:
        gone, made = eqn.params["axes"], []
        for x, v in zip(operands, eqn.outvars, strict=False):
            dims = tuple(a for d, a in enumerate(x.dims) if d not in gone)
            over = tuple(a for d in gone for a in x.dims[d])
            out = Layout(dims, (*x.owed, *over), x.free)
            made.append(out if sums else self.settled(out, v.aval, rounds, loops))
        return made

    _on_reduce_max = _on_reduce_min = _on_reduce_and = _on_reduce_or = _on_argmax = _on_argmin = _reduced

    def _on_reduce_sum(self, *args: Any) -> list[Layout]:
        return self._reduced(*args, sums=True)

    def _sliced(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        """What has a part of a dimension: of that, each device needs the whole."""
        x, aval, out = operands[0], eqn.invars[0].aval, eqn.outvars[0].aval
        dims = tuple(a if n == m else () for a, n, m in zip(x.dims, aval.shape, out.shape, strict=True))
        x = self.settled(self.moved(x, dims, aval, rounds, loops), aval, rounds, loops)
        return [x] * len(eqn.outvars)

    _on_slice = _on_dynamic_slice = _on_pad = _on_rev = _on_sort = _on_cumsum = _on_cummax = (
        _on_cumlogsumexp
    ) = _sliced

    def _on_dynamic_update_slice(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        x, new = operands[:2]
        if x.free:
            old, part = (a.aval.shape for a in eqn.invars[:2])
            return [Layout(tuple(a if n == m else () for a, n, m in zip(new.dims, old, part, strict=True)))]
        return [x]

    def _on_concatenate(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        x, along = joined(operands), eqn.params["dimension"]
        return [Layout(tuple(() if d == along else a for d, a in enumerate(x.dims)), x.owed, x.free)]

    def _on_dot_general(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        (contract, batch), avals = eqn.params["dimension_numbers"], [a.aval for a in eqn.invars]
        xs = [self.settled(x, aval, rounds, loops) for x, aval in zip(operands, avals, strict=True)]
        xs = self._agreed(xs, contract, batch, eqn.invars, rounds, loops)
        free = [
            [d for d in range(len(x.dims)) if d not in c and d not in b]
            for x, c, b in zip(xs, contract, batch, strict=True)
        ]
        one, other = (x.dims for x in xs)
        common = [longer(one[i], other[j]) for i, j in zip(*batch, strict=True)]
        owed = tuple(
            dict.fromkeys(a for i, j in zip(*contract, strict=True) for a in longer(one[i], other[j]))
        )
        dims = (*common, *(one[d] for d in free[0]), *(other[d] for d in free[1]))
        out = Layout(dims, tuple(a for a in owed if all(a not in axes for axes in dims)))
        summed = math.prod(avals[0].shape[i] for i in contract[0])
        self._multiplied(eqn, dims, out.owed, summed, rounds)
        return [out]

    def _on_conv_general_dilated(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        """A product over channels and the window; the gradient of a kernel is one over the batch."""
        numbers, avals = eqn.params["dimension_numbers"], [a.aval for a in eqn.invars]
        x, w = (self.settled(x, aval, rounds, loops) for x, aval in zip(operands, avals, strict=True))
        (rows, channels, *_), (made, taken, *window) = numbers.lhs_spec, numbers.rhs_spec
        out: list[Any] = [()] * eqn.outvars[0].aval.ndim
        out[numbers.out_spec[0]] = x.dims[rows]
        out[numbers.out_spec[1]] = tuple(a for a in w.dims[made] if a not in x.dims[rows])
        used = {a for axes in out for a in axes}
        owed = tuple(a for a in longer(x.dims[channels], w.dims[taken]) if a not in used)
        kernel = math.prod(avals[1].shape[d] for d in (taken, *window))
        self._multiplied(eqn, tuple(out), owed, kernel, rounds)
        return [Layout(tuple(out), owed)]

    def _on_ragged_dot_general(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        """Each row by the matrix of its group: as many operations as with one matrix."""
        x = self.settled(operands[0], eqn.invars[0].aval, rounds, loops)
        shape, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval
        dims = tuple(a if n == m else () for a, n, m in zip(x.dims, shape, out.shape, strict=False))
        dims += ((),) * (out.ndim - len(dims))
        used = {a for axes in dims for a in axes}
        owed = tuple(a for a in x.axes if a not in used)
        self._multiplied(eqn, dims, owed, shape[-1], rounds)
        return [Layout(dims, owed)]

    _on_ragged_dot = _on_ragged_dot_general

    def _multiplied(self, eqn: Any, dims: Dims, owed: Sequence[str], summed: int, rounds: int) -> None:
        """Counts the operations of a product, of which each element is a sum of `summed` products."""
        if not self.quiet:
            shares = math.prod(self.sizes[a] for a in owed)
            elements = local_elements(eqn.outvars[0].aval.shape, dims, self.sizes)
            self.costs.flops += rounds * 2 * elements * summed / shares

    def _agreed(
        self, xs: list[Layout], contract: Any, batch: Any, atoms: list[Any], rounds: int, loops: int
    ) -> list[Layout]:
        """Operands of a product, of which no axis divides two dimensions: the smaller one is gathered."""
        paired = [dict(zip(*pairs, strict=True)) for pairs in (contract, batch)]
        pairs = {i: j for found in paired for i, j in found.items()}
        clashing = set()
        for i, axes in enumerate(xs[0].dims):
            for a in axes:
                for j, others in enumerate(xs[1].dims):
                    if a in others and pairs.get(i) != j:
                        clashing.add(a)
        if not clashing:
            return xs
        small = min((0, 1), key=lambda n: self.bytes(atoms[n].aval, xs[n].dims))
        dims = tuple(tuple(a for a in axes if a not in clashing) for axes in xs[small].dims)
        xs[small] = self.sent(atoms[small], xs[small], dims, rounds, loops)
        return xs

    def _on_gather(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
        aval, out = eqn.invars[0].aval, eqn.outvars[0].aval
        x = self.settled(operands[0], aval, rounds, loops)
        indices = operands[1]
        batching = tuple(getattr(numbers, "operand_batching_dims", ()))
        gone = {*numbers.collapsed_slice_dims, *batching}
        kept = [d for d in range(aval.ndim) if d not in gone]
        dims: list[Any] = [()] * out.ndim
        for place, d in zip(numbers.offset_dims, kept, strict=True):
            dims[place] = x.dims[d] if sizes[d] == aval.shape[d] else ()
        rest = [d for d in range(out.ndim) if d not in numbers.offset_dims]
        used = {a for axes in dims for a in axes}
        for place, axes in zip(rest, indices.dims, strict=False):
            dims[place] = tuple(a for a in axes if a not in used)
        for d, place in zip(batching, getattr(numbers, "start_indices_batching_dims", ()), strict=False):
            if not dims[rest[place]]:
                dims[rest[place]] = tuple(a for a in x.dims[d] if a not in used)
        used = {a for axes in dims for a in axes}
        looked_up = tuple(a for d in numbers.collapsed_slice_dims for a in x.dims[d])
        clashing = [a for a in looked_up if a in used]
        if clashing:
            plain = tuple(tuple(a for a in axes if a not in clashing) for axes in x.dims)
            self.moved(x, plain, aval, rounds, loops)
        return [Layout(tuple(dims), tuple(a for a in looked_up if a not in used))]

    def _on_scatter_add(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        numbers, aval, new = eqn.params["dimension_numbers"], eqn.invars[0].aval, eqn.invars[2].aval
        x, updates = operands[0], self.settled(operands[2], new, rounds, loops)
        batching = tuple(getattr(numbers, "operand_batching_dims", ()))
        gone = {*numbers.inserted_window_dims, *batching}
        dims: list[Any] = [()] * aval.ndim
        for place, d in zip(
            numbers.update_window_dims, [d for d in range(aval.ndim) if d not in gone], strict=True
        ):
            dims[d] = updates.dims[place] if new.shape[place] == aval.shape[d] else ()
        rest = [d for d in range(new.ndim) if d not in numbers.update_window_dims]
        kept = set()
        for d, place in zip(batching, getattr(numbers, "scatter_indices_batching_dims", ()), strict=False):
            dims[d] = updates.dims[rest[place]]
            kept.update(dims[d])
        beside = self._beside.get(eqn.outvars[0], dims)
        dims = [new if set(old) <= set(new) else old for old, new in zip(dims, beside, strict=True)]
        used = {a for axes in dims for a in axes}
        owed = tuple(a for d in rest for a in updates.dims[d] if a not in used)
        out = Layout(tuple(dims), owed)
        return [out if x.free else joined([self.settled(out, aval, rounds, loops), x])]

    # --- what is wanted, backwards --------------------------------------------------------------------

    def demands(self, jaxpr: Inlined, wanted: Sequence[Dims | None]) -> dict[Any, Dims]:
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
                goal, demand = _target(eqn), outs[0]
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
                want(eqn.invars[0], reshaped(outs[0], shape, eqn.invars[0].aval.shape, self.sizes))  # type: ignore[arg-type]
            elif name == "optimization_barrier":
                for a, d in zip(eqn.invars, outs, strict=True):
                    want(a, d)
            elif name == "scan":
                p = eqn.params
                n, m = p["num_consts"], p["num_consts"] + p["num_carry"]
                kept = m - n
                inner = p["jaxpr"].jaxpr
                ends = [*outs[:kept], *(None if d is None else d[1:] for d in outs[kept:])]
                below = self.demands(self.inlined(inner), ends)
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

    # --- mapped axes ----------------------------------------------------------------------------------

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

    def _on_psum(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        size = sum(self.bytes(a.aval, x.dims) for a, x in zip(eqn.invars, operands, strict=True))
        self.send("all-reduce", _mapped_axes(eqn), size, rounds, loops)
        return operands

    _on_psum_invariant = _on_pmax = _on_pmin = _on_psum

    def _on_all_gather(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        out = eqn.outvars[0].aval
        rank = out.ndim - operands[0].dims.__len__()
        dims = (((),) * rank + operands[0].dims) if rank else operands[0].dims
        self.send("all-gather", _mapped_axes(eqn), self.bytes(out, dims), rounds, loops)
        return [Layout(dims)]

    _on_all_gather_invariant = _on_all_gather

    def _on_reduce_scatter(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        size = self.bytes(eqn.invars[0].aval, operands[0].dims)
        self.send("reduce-scatter", _mapped_axes(eqn), size, rounds, loops)
        rank = eqn.outvars[0].aval.ndim
        return [Layout(operands[0].dims if len(operands[0].dims) == rank else ((),) * rank)]

    def _on_all_to_all(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        size = self.bytes(eqn.invars[0].aval, operands[0].dims)
        self.send("all-to-all", _mapped_axes(eqn), size, rounds, loops)
        return [whole(eqn.outvars[0].aval.ndim)]

    def _on_ppermute(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        size = sum(self.bytes(a.aval, x.dims) for a, x in zip(eqn.invars, operands, strict=True))
        self.send("collective-permute", _mapped_axes(eqn), size, rounds, loops)
        return operands

    # --- loops and branches ---------------------------------------------------------------------------

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


def _summed_later(jaxpr: Inlined, demands: Mapping[Any, Dims]) -> set[Any]:
    """What is only added up, or handed on, to something else that is wanted divided: one sum does for all."""
    takers: dict[Any, list[Any]] = {}
    for eqn in jaxpr.eqns:
        for a in eqn.invars:
            if not hasattr(a, "val"):
                takers.setdefault(a, []).append(eqn)
    linear = {*_SUMS.split(), *_HANDED.split()}
    results = {a for a in jaxpr.outvars if not hasattr(a, "val")}
    return {
        v
        for v, some in takers.items()
        if v not in results and all(e.primitive.name in linear and e.outvars[0] in demands for e in some)
    }


def _with_axes(x: Layout, demand: Dims, named: set[str]) -> Dims:
    """`x` as it is, and divided by what it owes where that is demanded."""
    owed = {a for a in x.owed if a in named}
    return tuple(
        tuple(dict.fromkeys((*old, *(a for a in new if a in owed))))
        for old, new in zip(x.dims, demand, strict=True)
    )


def _target(eqn: Any) -> Dims | None:
    sharding = eqn.params.get("sharding", eqn.params.get("dst_sharding"))
    spec = getattr(sharding, "spec", None)
    rank = eqn.outvars[0].aval.ndim
    return None if spec is None else tuple(entries(spec, rank))


def _mapped_axes(eqn: Any) -> tuple[str, ...]:
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(a for a in (axes if isinstance(axes, tuple | list) else (axes,)) if isinstance(a, str))


# --- memory -------------------------------------------------------------------------------------------


class _Memory:
    """What is alive while equations run one after another.

    What works element by element is fused with what needs it: its operands live until then. It has a
    buffer of its own only if something takes it as an array: a loop, a collective, a result.
    """

    def __init__(self, jaxpr: Any, walk: _Walk, *, in_loop: bool):
        self._walk, self.peak, self._now = walk, 0, 0
        self._roots: dict[Any, frozenset[Any]] = {}
        self._sizes: dict[Any, int] = {}
        self._outputs = {a for a in jaxpr.outvars if not hasattr(a, "val")}
        self._given = {*jaxpr.invars, *jaxpr.constants}
        self._lent = set(jaxpr.invars) if in_loop else set()
        self._taken = set(self._outputs)  # as arrays
        for eqn in jaxpr.eqns:
            if not _is_fused(eqn) and not _takes_fused(eqn):
                self._taken |= {a for a in eqn.invars if not hasattr(a, "val")}
        self._last: dict[Any, int] = {}
        for place, eqn in enumerate(jaxpr.eqns):
            roots = (
                frozenset().union(*(self._roots_of(a) for a in eqn.invars if not hasattr(a, "val")))
                if eqn.invars
                else frozenset()
            )
            for v in eqn.outvars:
                own = not _is_fused(eqn) or (v in self._taken and not _is_view(eqn))
                self._roots[v] = frozenset({v}) if own else roots
                if _may_send(eqn):  # what it comes from may be what it is
                    self._roots[v] |= roots | {v}
            if not _is_fused(eqn) or any(v in self._taken for v in eqn.outvars):
                for r in roots:
                    self._last[r] = place
        for a in self._outputs:
            for r in self._roots_of(a):
                self._last[r] = len(jaxpr.eqns)
        if in_loop:
            self._hold_for_late_products(jaxpr)
        self._ends: dict[int, list[Any]] = {}
        for v, place in self._last.items():
            self._ends.setdefault(place, []).append(v)

    def _hold_for_late_products(self, jaxpr: Inlined) -> None:
        """Products for results alone, as gradients of weights are, come last: their operands live until then.

        So compilers have something to compute while the arrays of other products are on their way.
        """
        awaited: set[Any] = set()
        for eqn in reversed(jaxpr.eqns):
            if not _is_fused(eqn) or any(v in awaited for v in eqn.outvars):
                awaited |= {a for a in eqn.invars if not hasattr(a, "val")}
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general" and eqn.outvars[0] not in awaited:
                for a in eqn.invars:
                    for r in self._roots_of(a) if not hasattr(a, "val") else ():
                        self._last[r] = len(jaxpr.eqns)

    def _roots_of(self, v: Any) -> frozenset[Any]:
        return self._roots.get(v, frozenset({v}) if v in self._given else frozenset())

    def step(
        self, place: int, eqn: Any, layouts: Mapping[Any, Layout], inside: int, rounds: int, *, sends: bool
    ) -> None:
        """One equation: `inside` is what it needs besides operands and results."""
        walk = self._walk
        own = [v for v in eqn.outvars if v in self._roots[v] and (sends or not _may_send(eqn))]
        made = {v: walk.bytes(v.aval, layouts[v].dims) for v in own if v in layouts and not layouts[v].free}
        ended = [v for v in self._ends.get(place, ()) if v in self._sizes]
        given_up = [v for v in ended if v in _in_place(eqn)]
        self._free(given_up)
        over = [v for v in self._ends.get(place, ()) if v in self._lent and _is_fused(eqn)]
        for v in made:  # in the place of what the loop was at
            same = next(
                (x for x in over if x.aval.shape == v.aval.shape and x.aval.dtype == v.aval.dtype), None
            )
            if same is not None and v in self._outputs:
                over.remove(same)
                made[v] = 0
        if eqn.primitive.name in ("shard_map", "cond"):  # whose functions make the results where they are
            self.peak = max(self.peak, self._now + inside)
            inside = 0
        self._now += sum(made.values())
        self._sizes |= made
        self.peak = max(self.peak, self._now + inside)
        self._free([v for v in ended if v not in given_up])
        self._free([v for v in made if v not in self._last])
        if not walk.quiet:  # written, and read again
            walk.costs.traffic += 2 * rounds * sum(n for n in made.values() if n > _FAST)

    def _free(self, variables: Sequence[Any]) -> None:
        for v in variables:
            self._now -= self._sizes.pop(v, 0)


def _in_place(eqn: Any) -> list[Any]:
    """The operands in whose place results may come."""
    name, p = eqn.primitive.name, eqn.params
    if name == "scan":
        given = eqn.invars[p["num_consts"] : p["num_consts"] + p["num_carry"]]
    elif name == "while":
        given = eqn.invars[p["cond_nconsts"] + p["body_nconsts"] :]
    elif name in ("dynamic_update_slice", "scatter-add"):
        given = eqn.invars[:1]
    else:
        given = eqn.invars if _is_fused(eqn) else []
    return [a for a in given if not hasattr(a, "val")]


def _may_send(eqn: Any) -> bool:
    return eqn.primitive.name in ("sharding_constraint", "reshard")


def _is_view(eqn: Any) -> bool:
    """Is the result the operand, named otherwise?"""
    row = known(eqn)
    return row.handed or (row.moves and eqn.primitive.name in ("reshape", "squeeze", "expand_dims"))


def _is_fused(eqn: Any) -> bool:
    row = known(eqn)
    if eqn.primitive.name == "scatter-add":  # one element of each row: compilers compare instead
        numbers = eqn.params["dimension_numbers"]
        return bool(getattr(numbers, "operand_batching_dims", ())) and not numbers.update_window_dims
    return (
        row.element or row.moves or row.handed or row.typing or eqn.primitive.name == "iota"
    ) and not row.call


def _takes_fused(eqn: Any) -> bool:
    """Does it read what is computed element by element without a buffer?"""
    name = eqn.primitive.name
    return name in ("dot_general", "conv_general_dilated") or name.startswith(
        ("reduce_", "arg", "ragged_dot")
    )
