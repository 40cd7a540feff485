"""One update of `stored`, part by part: no decoded copy of a whole leaf, and parts that stay in cache.

On CPU, XLA computes what a block's maximum is taken of anew for every use, or writes it to memory. A loop
over parts of a leaf decodes one, runs the rule's equations on it, and encodes the results in place. Each
round ends by computing what the next one encodes: as a value carried by the loop, it is computed once.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._axes import is_surrounded_by, reduction_axes
from .._encoded import is_encoded
from .._parts import ByParts, NotByPartsError
from .._states import explained
from .._types import Params, Rule, State, Updates
from .._window import Window
from ..passes.integer_views import from_words, pack, to_words, unpack
from ..passes.loop import opaque_zero
from ..passes.regions import Region, part, regions, with_part
from ..tracing.graph import Graph, has_effects
from ._codec import Codec

_MOST = 2**17  # elements of a part: with all that is made of them they stay in a CPU's cache
_FEWEST = 2**15  # below it, rounds cost more than they save
_SHARE = 32  # parts of a leaf: what is made of one of them is a fraction of the leaf


def helps(updates: Updates, params: Params | None) -> bool:
    """Are large leaves whole on one CPU device, in a program that is to be compiled?"""
    leaves, treedef = jax.tree.flatten(updates)
    return (
        not is_surrounded_by("apply")  # which runs whole steps by parts
        and jax.device_count() == 1
        and jax.default_backend() == "cpu"
        and jax.sharding.get_abstract_mesh().empty
        and not reduction_axes()
        and any(isinstance(x, jax.core.Tracer) for x in leaves)
        and (params is None or jax.tree.structure(params) == treedef)
        and any(math.prod(x.shape) >= 2 * _FEWEST for x in leaves)
    )


def _most(shape: tuple[int, ...]) -> int:
    """Elements of a part of an array."""
    return min(_MOST, max(_FEWEST, math.prod(shape) // _SHARE))


class _Leaf(NamedTuple):
    """What the loop over one parameter writes in place, or a part of it."""

    fields: dict[int, Any]  # of the state, by number
    update: Any
    residual: Any


class _Work(NamedTuple):
    """The array in which an update is written, which holds what it is made of until then.

    So it needs no memory besides: it takes the place of the gradient, or of gradient and parameter where
    both have 16 bits and it has 32. Nothing is moved there before the loop begins: XLA would move all
    leaves at once.
    """

    gradient: Any
    parameter: Any  # or None
    out: Any  # shape and dtype of the update

    @property
    def _packed(self) -> bool:
        wide, narrow = self.out.dtype == jnp.float32, self.gradient.dtype.itemsize == 2
        return wide and narrow and self.parameter is not None and self.parameter.dtype.itemsize == 2

    def begun(self, began: Any) -> Any:
        """The array; `began` is 0."""
        if self._packed:
            return jnp.where(began == 0, pack(self.parameter, self.gradient), 0)
        if self.gradient.dtype == self.out.dtype:
            return to_words(jnp.where(began == 0, self.gradient, 0))
        return to_words(jnp.full(self.out.shape, began, self.out.dtype))

    def read(self, held: Any, starts: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """A part of the gradient, and of the parameter."""
        if self._packed:
            p, g = unpack(part(held, starts, shape), self.parameter.dtype, self.gradient.dtype)
            return g, p
        p = from_words(part(to_words(self.parameter), starts, shape), self.parameter)
        if self.gradient.dtype == self.out.dtype:
            return from_words(part(held, starts, shape), self.gradient), p
        return from_words(part(to_words(self.gradient), starts, shape), self.gradient), p


class UpdateByParts:
    """One update; `run` gives what comes of decoding all at once.

    Inputs are numbered: gradients, then state, then parameters; results: updates, then new state.

    Raises:
      NotByPartsError: what the rule does is more than its results, or they have another structure.
    """

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
        self._owned: dict[int | None, list[int]] = {}
        for j, owner in enumerate(codec.owners):
            self._owned.setdefault(owner, []).append(self.count + j)
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
        made = []

        def update(updates: Updates, state: State, params: Params | None) -> Any:
            with explained("stored", rule.init, state, updates, params):
                results = rule.update(updates, state, params, **extra)
            made.append(tuple(jax.tree.structure(x) for x in results))
            return results

        closed = jax.make_jaxpr(update)(*seen)
        self.graph = Graph(closed)
        if has_effects(closed) or made[-1] != (self.treedef, self.state_treedef):
            raise NotByPartsError
        self.loops = {i: loop for i in range(self.count) if (loop := self._loop(i)) is not None}

    def run(self) -> tuple[Updates, State, Any]:
        """The updates, the new inner state and the new residuals."""
        mine = {k for i in self.loops for k in (i, *self._fields(i))}
        rest = [k for k in range(self.count + len(self.nodes)) if k not in mine]
        needed = set(self.graph.inputs_of(self.graph.outputs[k] for k in rest))
        for k in sorted(needed.union(*(loop.needs for loop in self.loops.values()))):
            self.graph.give(k, self._input(k))
        results: dict[int, Any] = dict(zip(rest, self.graph.results(rest), strict=True))
        residuals = list(self.residuals)
        for k in rest:
            if k >= self.count:
                results[k] = self.codec.encode(k - self.count, self.nodes[k - self.count], results[k])
            elif self.kept(k):
                value = self._value(k) + results[k]
                results[k], residuals[k] = self.codec.write(k, self.params[k], value)
        began = opaque_zero(self.codec.step)
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
        return [k for k in self._owned.get(i, ()) if _shape(self.nodes[k - self.count]) == shape]

    def _loop(self, i: int) -> ByParts | None:
        """The update of a parameter as a function of a part, where that is worth it and possible."""
        fields, shape = self._fields(i), self.gradients[i].shape
        nodes = [self.nodes[k - self.count] for k in fields]
        gains = any(is_encoded(x) and x.format.blocks for x in nodes)
        if not gains or math.prod(shape) < 2 * _FEWEST:
            return None
        value = self.count + len(self.nodes) + i
        arrays = [i, *fields, *([value] if self.has_params else [])]
        if self.graph.type_of(i).shape != shape:
            return None
        try:
            loop = ByParts(self.graph, arrays, [i, *fields], cut=len(shape))
        except NotByPartsError:
            return None
        return None if loop.has_arrays_before else loop  # they would be decoded copies of the leaf

    def _looped(self, i: int, loop: ByParts, began: Any) -> tuple[_Leaf, Any]:
        """The results for parameter `i`, and a 0 that is known when they are there.

        Args:
          i: the parameter.
          loop: its update.
          began: 0, and known when the loop may begin: one loop after another needs the memory of one.
        """
        out = jax.ShapeDtypeStruct(
            self.gradients[i].shape, jnp.float32 if self.kept(i) else self.graph.type_of(i).dtype
        )
        work, old = _Work(self.gradients[i], self.params[i], out), self.residuals[i]
        nodes = {k: self.nodes[k - self.count] for k in self._fields(i)}
        value, shape = self.count + len(self.nodes) + i, self.gradients[i].shape

        def computed(leaf: _Leaf, starts: Any, size: tuple[int, ...]) -> _Leaf:
            """What a part becomes, its fields not yet encoded."""
            fields = {k: from_words(part(x, starts, size), nodes[k]) for k, x in leaf.fields.items()}
            parts = {k: self.codec.decode(x) for k, x in fields.items()}
            parts[i], p = work.read(leaf.update, starts, size)
            if p is not None:
                parts[i] = self.codec.widen(parts[i], p)
                parts[value] = self.codec.read(p, part(leaf.residual, starts, size))
            results = loop.at(starts, parts)
            step, residual = results.pop(i), None
            if self.kept(i):
                step, residual = self.codec.write(i, p, parts[value] + step, Window(shape, starts))
            return _Leaf(results, to_words(step), residual)

        def written(leaf: _Leaf, starts: Any, made: _Leaf) -> _Leaf:
            fields = {}
            for k, x in leaf.fields.items():
                place = Window(shape, starts)
                new = self.codec.encode(k - self.count, nodes[k], made.fields[k], place, apart=True)
                fields[k] = with_part(x, starts, to_words(new))
            update = with_part(leaf.update, starts, made.update)
            return _Leaf(fields, update, with_part(leaf.residual, starts, made.residual))

        leaf = _Leaf({k: to_words(x) for k, x in nodes.items()}, work.begun(began), old)
        for region in regions(shape, _most(shape)):

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
        fields = {k: from_words(x, nodes[k]) for k, x in leaf.fields.items()}
        return _Leaf(fields, from_words(leaf.update, out), leaf.residual), began


def _shape(node: Any) -> tuple[int, ...]:
    return tuple((node.codes if is_encoded(node) else node).shape)
