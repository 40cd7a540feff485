"""One update of `stored`, part by part: no decoded copy of a whole leaf, and parts that stay in cache.

On CPU, XLA computes what a block's maximum is taken of anew for every use, or writes it to memory. A loop
over parts of a leaf decodes one, runs the rule's equations on it, and encodes the results in place. Each
round ends by computing what the next one encodes: as a value carried by the loop, it is computed once.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._encoded import is_encoded
from .._parts import ByParts, NotByPartsError
from .._slices import Slices
from .._types import Params, Rule, State, Updates
from ._codec import Codec
from ._random import Part
from ._regions import Region, part, regions, with_part

_MOST = 2**17  # elements of a part: with all that is made of them they stay in a CPU's cache
_FEWEST = 2**15  # below it, rounds cost more than they save
_SHARE = 32  # parts of a leaf: what is made of one of them is a fraction of the leaf


def helps(updates: Updates, params: Params | None) -> bool:
    """Are large leaves whole on one CPU device, in a program that is to be compiled?"""
    leaves, treedef = jax.tree.flatten(updates)
    return (
        jax.device_count() == 1
        and jax.default_backend() == "cpu"
        and jax.sharding.get_abstract_mesh().empty
        and any(isinstance(x, jax.core.Tracer) for x in leaves)
        and (params is None or jax.tree.structure(params) == treedef)
        and any(math.prod(x.shape) >= 2 * _FEWEST for x in leaves)
    )


def _most(shape: tuple[int, ...]) -> int:
    """Elements of a part of an array."""
    return min(_MOST, max(_FEWEST, math.prod(shape) // _SHARE))


def update_by_parts(
    codec: Codec,
    rule: Rule,
    updates: Updates,
    inner: State,
    residuals: Any,
    params: Params | None,
    extra: dict[str, Any],
) -> tuple[Updates, State, Any]:
    """The updates, the new inner state and the new residuals, as when all is decoded at once."""
    return _Update(codec, rule, updates, inner, residuals, params, extra).run()


class _Leaf(NamedTuple):
    """What the loop over one parameter writes in place, or a part of it."""

    fields: dict[int, Any]  # of the state, by number
    update: Any  # the gradient until it is overwritten, where dtypes allow
    residual: Any


class _Update:
    """Inputs are numbered: gradients, then state, then parameters; results: updates, then new state."""

    def __init__(
        self,
        codec: Codec,
        rule: Rule,
        updates: Updates,
        inner: State,
        residuals: Any,
        params: Params | None,
        extra: dict[str, Any],
    ):
        self.codec = codec
        self.gradients, self.treedef = jax.tree.flatten(updates)
        self.nodes, self.state_treedef = jax.tree.flatten(inner, is_leaf=is_encoded)
        self.params = [None] * len(self.gradients) if params is None else self.treedef.flatten_up_to(params)
        self.has_params = params is not None
        self.count = len(self.gradients)
        self.residuals: list[Any] = [None] * self.count
        if codec.special:
            self.residuals = self.treedef.flatten_up_to(residuals)
        seen = jax.eval_shape(
            lambda: (
                self.treedef.unflatten([self._gradient(i) for i in range(self.count)]),
                self.state_treedef.unflatten([codec.decode(x) for x in self.nodes]),
                self.treedef.unflatten([self._value(i) for i in range(self.count)])
                if self.has_params
                else None,
            )
        )
        self.slices = Slices(lambda g, s, p: rule.update(g, s, p, **extra), seen)
        self.loops = {i: loop for i in range(self.count) if (loop := self._loop(i)) is not None}

    def run(self) -> tuple[Updates, State, Any]:
        mine = {k for i in self.loops for k in (i, *self._fields(i))}
        rest = [k for k in range(self.count + len(self.nodes)) if k not in mine]
        needed = set(self.slices.inputs_of(self.slices.outputs[k] for k in rest))
        for k in sorted(needed.union(*(loop.needs for loop in self.loops.values()))):
            self.slices.give(k, self._input(k))
        results: dict[int, Any] = dict(zip(rest, self.slices.results(rest), strict=True))
        residuals = list(self.residuals)
        for k in rest:
            if k >= self.count:
                results[k] = self.codec.encode(k - self.count, self.nodes[k - self.count], results[k])
            elif self.kept(k):
                value = self._value(k) + results[k]
                results[k], residuals[k] = self.codec.write(k, self.params[k], value)
        began = jnp.minimum(self.codec.step, 0)  # a 0 that compilers do not see: no loop of one round unrolls
        for i, loop in self.loops.items():
            loop.prepare()
            leaf, began = self._looped(i, loop, began)
            results |= leaf.fields | {i: leaf.update}
            residuals[i] = leaf.residual
        return (
            self.treedef.unflatten([results[i] for i in range(self.count)]),
            self.state_treedef.unflatten([results[self.count + j] for j in range(len(self.nodes))]),
            self.treedef.unflatten(residuals) if self.codec.special else None,
        )

    # --- inputs ---------------------------------------------------------------------------------------

    def _gradient(self, i: int) -> Any:
        g, p = self.gradients[i], self.params[i]
        return g if p is None else self.codec.widen(g, p)

    def _value(self, i: int) -> Any:
        return self.codec.read(self.params[i], self.residuals[i])

    def _input(self, k: int) -> Any:
        if k < self.count:
            return self._gradient(k)
        k -= self.count
        return self.codec.decode(self.nodes[k]) if k < len(self.nodes) else self._value(k - len(self.nodes))

    # --- one parameter --------------------------------------------------------------------------------

    def kept(self, i: int) -> bool:
        return self.has_params and self.codec.keeps(self.params[i])

    def _fields(self, i: int) -> list[int]:
        """The results that are parameter `i`'s state, of its shape."""
        shape = self.gradients[i].shape
        return [
            self.count + j
            for j, (node, owner) in enumerate(zip(self.nodes, self.codec.owners, strict=True))
            if owner == i and _shape(node) == shape
        ]

    def _loop(self, i: int) -> ByParts | None:
        """The update of a parameter as a function of a part, where that is worth it and possible."""
        fields, shape = self._fields(i), self.gradients[i].shape
        gains = self.kept(i) or any(is_encoded(self.nodes[k - self.count]) for k in fields)
        if not gains or math.prod(shape) < 2 * _FEWEST:
            return None
        value = self.count + len(self.nodes) + i
        arrays = [i, *fields, *([value] if self.has_params else [])]
        try:
            return ByParts(self.slices, arrays, [i, *fields], cut=len(shape))
        except NotByPartsError:
            return None

    def _looped(self, i: int, loop: ByParts, began: Any) -> tuple[_Leaf, Any]:
        """The results for parameter `i`, and a 0 that is known when they are there.

        Args:
          i: the parameter.
          loop: its update.
          began: 0, and known when the loop may begin: one loop after another needs the memory of one.
        """
        g, p, kept = self.gradients[i], self.params[i], self.kept(i)
        out = self.slices.type_of(i)
        in_place = g.dtype == out.dtype
        # no copy of the gradient before the loop begins: it would be one of all leaves at once
        update = jnp.where(began == 0, g, 0) if in_place else jnp.full(out.shape, began, out.dtype)
        fields = {k: self.nodes[k - self.count] for k in self._fields(i)}
        value = self.count + len(self.nodes) + i

        def computed(leaf: _Leaf, starts: Any, shape: tuple[int, ...]) -> _Leaf:
            """What a part becomes, its fields not yet encoded."""
            parts = {k: self.codec.decode(part(x, starts, shape)) for k, x in leaf.fields.items()}
            before = part(p, starts, shape) if self.has_params else None
            gradient = part(leaf.update if in_place else g, starts, shape)
            parts[i] = gradient if before is None else self.codec.widen(gradient, before)
            if before is not None:
                parts[value] = self.codec.read(before, part(leaf.residual, starts, shape))
            results = loop.at(starts, parts)
            step, residual = results.pop(i), None
            if kept:
                step, residual = self.codec.write(i, before, parts[value] + step, Part(g.shape, starts))
            return _Leaf(results, step, residual)

        def written(leaf: _Leaf, starts: Any, made: _Leaf) -> _Leaf:
            fields, place = dict(leaf.fields), Part(g.shape, starts)
            for k, x in fields.items():
                new = self.codec.encode(k - self.count, x, made.fields[k], place, apart=True)
                fields[k] = with_part(x, starts, new)
            update = with_part(leaf.update, starts, made.update)
            return _Leaf(fields, update, with_part(leaf.residual, starts, made.residual))

        leaf = _Leaf(fields, update, self.residuals[i])
        for region in regions(g.shape, _most(g.shape)):

            def going(carry: Any, region: Region = region) -> Any:
                return carry[2] < region.rounds

            def one(carry: Any, region: Region = region) -> Any:
                leaf, made, n = carry
                leaf = written(leaf, region.starts(n), made)
                following = region.starts(jnp.minimum(n + 1, region.rounds - 1))
                return leaf, computed(leaf, following, region.shape), n + 1

            first = region.starts(began)
            made = computed(leaf, first, region.shape)
            leaf, _, n = jax.lax.while_loop(going, one, (leaf, made, began))
            began = n // (region.rounds + 1)
        return leaf, began


def _shape(node: Any) -> tuple[int, ...]:
    return tuple((node.codes if is_encoded(node) else node).shape)
