"""What each primitive makes of how its operands are divided, and what that sends."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from .._nodes import bits_of
from .demands import SUMS, goal_of
from .layouts import Dims, Layout, Sent, joined, local_elements, longer, refines, reshaped, whole
from .primitives import known

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


class Rules:
    """A method for each primitive: (equation, operands, demands, rounds, loops) -> results.

    Attributes:
      sizes: mesh axis -> number of devices.
      scatters: has the compiler reduce-scatters?
      costs: what has been counted.
      quiet: is nothing counted, for a first look?
    """

    def __init__(self, sizes: Mapping[str, int], scatters: bool):
        self.sizes, self.scatters, self.costs, self.quiet = sizes, scatters, Costs(), 0
        self.already_sent: dict[Any, Layout] = {}  # in the function at hand
        self.sums: dict[Any, Layout] = {}  # there, what has been summed
        self.narrow: dict[Any, Any] = {}  # there, the dtypes of what is sent in a narrower one
        self.beside: dict[Any, Dims] = {}  # how what a variable is added to, or multiplied by, is divided

    def bytes(self, aval: Any, dims: Dims) -> int:
        """Of one device's part of an array."""
        if not hasattr(aval, "dtype") or not hasattr(aval.dtype, "itemsize"):
            return 0
        return local_elements(aval.shape, dims, self.sizes) * bits_of(aval) // 8

    def sent_as(self, v: Any) -> Any:
        """A variable's shape, and the dtype in which it is sent."""
        dtype = self.narrow.get(v)
        return v.aval if dtype is None else jax.ShapeDtypeStruct(v.aval.shape, dtype)

    def send(self, kind: str, axes: Any, size: int, rounds: int, loops: int) -> None:
        """Counts a collective."""
        axes = tuple(a for a in self.sizes if a in axes and self.sizes[a] > 1)
        if axes and not self.quiet:
            self.costs.sent.append(Sent(kind, axes, size, rounds, loops))

    def sent(self, atom: Any, x: Layout, dims: Dims, aval: Any, rounds: int, loops: int) -> Layout:
        """A variable divided otherwise, once: compilers see that it is wanted twice."""
        key = (id(atom), dims)
        if key not in self.already_sent:
            self.already_sent[key] = self.moved(x, dims, aval, rounds, loops)
        return self.already_sent[key]

    def moved(self, x: Layout, dims: Dims, aval: Any, rounds: int, loops: int) -> Layout:
        """An array divided otherwise; what it owes over axes that do not divide it then stays owed."""
        if x.free:
            return Layout(dims)
        named = {a for axes in dims for a in axes}
        scattered = [a for a in x.owed if a in named]
        kept = tuple(tuple(a for a in axes if a not in scattered) for axes in dims)
        if scattered:
            kind = "reduce-scatter" if self.scatters else "all-reduce"
            self.send(kind, scattered, self.bytes(aval, kept), rounds, loops)
        gone = [a for a in x.axes if a not in named]
        wandered = [a for dim, axes in enumerate(x.dims) for a in axes if a in named and a not in dims[dim]]
        if wandered:
            self.send("all-to-all", wandered, self.bytes(aval, x.dims), rounds, loops)
        if gone:
            self.send("all-gather", gone, self.bytes(aval, kept), rounds, loops)
        return Layout(dims, tuple(a for a in x.owed if a not in scattered))

    def settled(self, x: Layout, aval: Any, rounds: int, loops: int) -> Layout:
        """An array of which all sums are done."""
        if x.owed:
            self.send("all-reduce", x.owed, self.bytes(aval, x.dims), rounds, loops)
        return Layout(x.dims, (), x.free)

    def summed(self, atom: Any, x: Layout, rounds: int, loops: int) -> Layout:
        """An operand of which all sums are done: once, whoever takes it."""
        if x.owed and not hasattr(atom, "val"):
            self.sums[atom] = self.settled(x, atom.aval, rounds, loops)
            return self.sums[atom]
        return self.settled(x, atom.aval, rounds, loops)

    def _by_elements(self, eqn: Any, operands: list[Layout], rounds: int, loops: int) -> list[Layout]:
        """Element by element, or not known: divided as operands of the result's shape are."""
        if not eqn.outvars:
            return []
        shape, name = getattr(eqn.outvars[0].aval, "shape", ()), eqn.primitive.name
        pairs = list(zip(eqn.invars, operands, strict=True))
        if name not in _LINEAR.split() or (name == "mul" and sum(bool(x.owed) for _, x in pairs) > 1):
            pairs = [(a, self.summed(a, x, rounds, loops)) for a, x in pairs]  # a product of sums is none
        elif name == "div":
            pairs[1] = pairs[1][0], self.summed(*pairs[1], rounds, loops)
        same = [(a, x) for a, x in pairs if getattr(a.aval, "shape", ()) == shape]
        for a, x in pairs:
            if x.owed and getattr(a.aval, "shape", ()) != shape:
                self.summed(a, x, rounds, loops)
        most = joined([x for _, x in same]) if same else None
        if most is not None and any(self._meets_otherwise(x, most, name) for _, x in same):
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
                self.beside[a] = out.dims
        return [
            out if getattr(v.aval, "shape", None) == shape else whole(getattr(v.aval, "ndim", 0))
            for v in eqn.outvars
        ]

    @staticmethod
    def _meets_otherwise(x: Layout, most: Layout, name: str) -> bool:
        """Does something owe what others do not, or what divides them?"""
        owed = set(x.owed)
        return (name in SUMS.split() and not x.free and owed != set(most.owed)) or bool(owed & {*most.axes})

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
        goal = goal_of(eqn)
        (x,), demand = operands, demands[0]
        if goal is None:
            return operands
        if demand is not None and refines(demand, goal) and (x.free or refines(x.dims, demand)):
            return [Layout(demand, x.owed) if x.free else x]
        return [self.sent(eqn.invars[0], x, goal, self.sent_as(eqn.outvars[0]), rounds, loops)]

    _on_reshard = _on_sharding_constraint

    def _on_optimization_barrier(self, eqn: Any, operands: list[Layout], *_: Any) -> list[Layout]:
        return operands

    def _on_iota(self, eqn: Any, *_: Any) -> list[Layout]:
        return [whole(eqn.outvars[0].aval.ndim, free=True)]

    def _on_broadcast_in_dim(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        (out,), x, places = eqn.outvars, operands[0], eqn.params["broadcast_dimensions"]
        if out.aval.size > eqn.invars[0].aval.size:  # what is summed is the smaller one
            x = self.summed(eqn.invars[0], x, rounds, loops)
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
        """What has a part of a dimension, or works along it: of that, each device needs the whole."""
        x, aval, out, p = operands[0], eqn.invars[0].aval, eqn.outvars[0].aval, eqn.params
        along = {p.get("dimension"), p.get("axis"), *(p.get("dimensions") or ())}
        lengths = enumerate(zip(x.dims, aval.shape, out.shape, strict=True))
        dims = tuple(a if n == m and d not in along else () for d, (a, n, m) in lengths)
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
            dims = tuple(a if n == m else () for a, n, m in zip(new.dims, old, part, strict=True))
            return [Layout(dims, new.owed)]
        self.settled(new, eqn.invars[1].aval, rounds, loops)
        return [self.settled(x, eqn.invars[0].aval, rounds, loops)]

    def _on_concatenate(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        """Divided as its operands are; along a divided dimension their parts have to move."""
        pairs = zip(eqn.invars, operands, strict=True)
        if len({frozenset(x.owed) for x in operands if not x.free}) > 1:
            operands = [self.summed(a, x, rounds, loops) for a, x in pairs]
        x, (out,) = joined(operands), eqn.outvars
        self.send("all-to-all", x.dims[eqn.params["dimension"]], self.bytes(out.aval, x.dims), rounds, loops)
        return [x]

    def _on_split(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        x, aval = operands[0], eqn.invars[0].aval
        self.send("all-to-all", x.dims[eqn.params["axis"]], self.bytes(aval, x.dims), rounds, loops)
        return [x] * len(eqn.outvars)

    def _on_dot_general(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        (contract, batch), avals = eqn.params["dimension_numbers"], [a.aval for a in eqn.invars]
        xs = [self.summed(a, x, rounds, loops) for a, x in zip(eqn.invars, operands, strict=True)]
        free = [
            [d for d in range(len(x.dims)) if d not in c and d not in b]
            for x, c, b in zip(xs, contract, batch, strict=True)
        ]
        xs = self._agreed(xs, (contract, batch), free, eqn.invars, demands[0], rounds, loops)
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
        x, w = (self.summed(a, x, rounds, loops) for a, x in zip(eqn.invars, operands, strict=True))
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
        self,
        xs: list[Layout],
        numbers: Any,
        free: Sequence[Sequence[int]],
        atoms: list[Any],
        demand: Dims | None,
        rounds: int,
        loops: int,
    ) -> list[Layout]:
        """Operands of a product, of which no axis divides two dimensions: one of them is gathered.

        That which leaves the result as it is wanted, else the smaller one.
        """
        paired = [dict(zip(*pairs, strict=True)) for pairs in numbers]
        pairs = {i: j for found in paired for i, j in found.items()}
        clashing: dict[str, tuple[int, int]] = {}
        for i, axes in enumerate(xs[0].dims):
            for a in axes:
                for j, others in enumerate(xs[1].dims):
                    if a in others and pairs.get(i) != j:
                        clashing[a] = i, j
        if not clashing:
            return xs
        order = [(0, d) for d in numbers[1][0]] + [(n, d) for n in (0, 1) for d in free[n]]

        def suits(gathered: int) -> bool:
            """Does the other's axis stay where the result has it?"""
            kept = 1 - gathered
            places = {
                a: order.index((kept, dims[kept])) for a, dims in clashing.items() if dims[kept] in free[kept]
            }
            return demand is not None and all(a in places and a in demand[places[a]] for a in clashing)

        small = min((0, 1), key=lambda n: (not suits(n), self.bytes(atoms[n].aval, xs[n].dims)))
        dims = tuple(tuple(a for a in axes if a not in clashing) for axes in xs[small].dims)
        xs[small] = self.sent(atoms[small], xs[small], dims, atoms[small].aval, rounds, loops)
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
        for d, place in zip(batching, getattr(numbers, "scatter_indices_batching_dims", ()), strict=False):
            dims[d] = updates.dims[rest[place]]
        beside = self.beside.get(eqn.outvars[0], dims)
        dims = [new if set(old) <= set(new) else old for old, new in zip(dims, beside, strict=True)]
        used = {a for axes in dims for a in axes}
        owed = tuple(a for d in rest for a in updates.dims[d] if a not in used)
        out = Layout(tuple(dims), owed)
        return [out if x.free else joined([self.settled(out, aval, rounds, loops), x])]

    def _on_psum(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        return self._exchanged("all-reduce", eqn, operands, rounds, loops)

    _on_psum_invariant = _on_pmax = _on_pmin = _on_psum

    def _on_all_gather(
        self, eqn: Any, operands: list[Layout], demands: Any, rounds: int, loops: int
    ) -> list[Layout]:
        out = eqn.outvars[0].aval
        rank = out.ndim - len(operands[0].dims)
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
        return self._exchanged("collective-permute", eqn, operands, rounds, loops)

    def _exchanged(
        self, kind: str, eqn: Any, operands: list[Layout], rounds: int, loops: int
    ) -> list[Layout]:
        """Over mapped axes, all of the operands, which keep their shapes."""
        size = sum(self.bytes(a.aval, x.dims) for a, x in zip(eqn.invars, operands, strict=True))
        self.send(kind, _mapped_axes(eqn), size, rounds, loops)
        return operands


def _mapped_axes(eqn: Any) -> tuple[str, ...]:
    axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return tuple(a for a in (axes if isinstance(axes, tuple | list) else (axes,)) if isinstance(a, str))
