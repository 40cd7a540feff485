"""One update of a rule whose state is in host memory, taken apart by parameter."""

from typing import Any

import jax
import jax.numpy as jnp

from .._compat import explicit_sharding, to_device, to_host
from .._gradients import in_order
from .._parts import ByParts, NotByPartsError
from .._states import explained
from .._types import Params, Rule, State, Updates
from ..tracing.graph import Graph
from ._offload_state import OffloadPlan, OffloadState


def stream(
    rule: Rule, updates: Updates, state: OffloadState, params: Params | None, extra: dict[str, Any]
) -> tuple[Updates, State]:
    """`rule.update`, with the state of one parameter after another on the device."""
    return _Stream(rule, updates, state.inner, state.hosted, params, extra).run()


def ways(rule: Rule, params: Params, state: State, hosted: OffloadPlan) -> tuple[str, ...]:
    """How the state of each parameter streams, in words."""
    shapes = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), t) for t in (params, state)]
    try:
        once = _Stream(rule, shapes[0], shapes[1], hosted, shapes[0], {})
    except Exception:  # it takes arguments that only the step has
        return ("with its parameter, if its update needs no other",) * len(hosted.layers)
    return tuple(once.way(i) for i in range(len(hosted.layers)))


class _Stream:
    """Inputs are numbered: gradients, then state, then parameters; results: updates, then new state."""

    def __init__(
        self,
        rule: Rule,
        updates: Updates,
        inner: State,
        hosted: OffloadPlan,
        params: Params | None,
        extra: dict[str, Any],
    ):
        self.hosted = hosted
        gradients = in_order("offload", updates, params, len(hosted.layers))
        self.gradients, self.treedef = gradients.leaves, gradients.treedef
        missing = {i for i, g in enumerate(self.gradients) if g is None}
        nothing = jnp.zeros(0)  # in the place of a gradient or an update that is not there
        self.gradients = [nothing if g is None else g for g in self.gradients]
        self.stored, self.state_treedef = jax.tree.flatten(inner)
        self.values = jax.tree.leaves(params)
        self.count = len(self.gradients)
        self._owned: dict[int | None, list[int]] = {}
        for j, owner in enumerate(hosted.owners):
            self._owned.setdefault(owner, []).append(self.count + j)

        def update(leaves: list[Any], inner: State, params: Params | None) -> tuple[list[Any], State]:
            own = [None if i in missing else g for i, g in enumerate(leaves)]
            given = self.treedef.unflatten(own)
            with explained("offload", rule.init, inner, given, params):
                made, new = rule.update(given, inner, params, **extra)
            changes = gradients.changes(made, params)
            self.without = {i for i, u in enumerate(changes) if u is None}
            return [nothing if u is None else u for u in changes], new

        # shapes and dtypes as they are on the device
        on_device = jax.eval_shape(
            lambda xs: self.state_treedef.unflatten([to_device(x) for x in xs]), self.stored
        )
        self.graph = Graph(jax.make_jaxpr(update)(self.gradients, on_device, params))
        for k, x in enumerate([*self.gradients, *self.stored, *self.values]):
            if not self._on_host(k):
                self.graph.give(k, x)

    def run(self) -> tuple[Updates, State]:
        changes: list[Any] = [None] * self.count
        new: list[Any] = [None] * len(self.stored)
        token: list[Any] = []
        for i in [*range(self.count), None]:  # parameter by parameter, then what belongs to none
            results = self._results(i)
            layered = self._layered(i, results)
            if i is None or layered is None:
                outs = self._whole(results, token)
            else:
                outs = self._by_layers(layered, results, i)
            for k, x in zip(results, outs, strict=True):
                if k < self.count:
                    changes[k] = x
                else:
                    new[k - self.count] = x
            token = [new[k - self.count] for k in results if self._on_host(k)] or token
        changes = [None if i in self.without else u for i, u in enumerate(changes)]
        return self.treedef.unflatten(changes), self.state_treedef.unflatten(new)

    def way(self, i: int) -> str:
        """How parameter `i` streams."""
        results = self._results(i)
        own = [k for k in results if self._on_host(k)]
        if not own:
            return "not chosen, or small"
        foreign = [k for k in self._needs(results) if k not in own]
        if foreign:
            return f"with {len(foreign)} more leaves in host memory: they do not stream"
        if self.hosted.layers[i]:
            layered = self._layered(i, results)
            return "layer by layer" if layered else "whole: its update is not elementwise"
        return "with its parameter"

    def _results(self, i: int | None) -> list[int]:
        """The results that belong to parameter `i`."""
        mine = self._owned.get(i, [])
        return mine if i is None else [i, *mine]

    def _needs(self, results: list[int]) -> list[int]:
        """The leaves in host memory that results depend on."""
        inputs = self.graph.inputs_of([self.graph.outputs[k] for k in results])
        return [k for k in inputs if self._on_host(k)]

    def _on_host(self, k: int) -> bool:
        return self.count <= k < self.count + len(self.stored) and self.hosted.on_host[k - self.count]

    def _whole(self, results: list[int], token: list[Any]) -> list[Any]:
        for k in self._needs(results):
            if not self.graph.has(k):
                self.graph.give(k, to_device(_after(self.stored[k - self.count], token)))
        outs = self.graph.results(results)
        return [to_host(x) if self._on_host(k) else x for k, x in zip(results, outs, strict=True)]

    # --- layer by layer -------------------------------------------------------------------------------

    def _layered(self, i: int | None, results: list[int]) -> ByParts | None:
        """The update of parameter `i` as a function of one layer, where it is to be and can be."""
        if i is None or not self.hosted.layers[i]:
            return None
        if explicit_sharding(self.gradients[i]) is not None:  # slices along a loop's index have no rule
            return None
        shape = self.gradients[i].shape
        if 0 in shape:
            return None
        arrays = [k for k in results if k == i or self.stored[k - self.count].shape == shape]
        if self.values:
            arrays.append(self.count + len(self.stored) + i)
        try:
            layered = ByParts(self.graph, arrays, results) if shape else None
        except NotByPartsError:
            return None
        return layered if layered and all(self.graph.has(k) for k in layered.needs) else None

    def _by_layers(self, layered: ByParts, results: list[int], i: int) -> list[Any]:
        layered.prepare()
        arrays = {k: self.stored[k - self.count] for k in results if k >= self.count} | {i: self.gradients[i]}
        arrays = {k: x for k, x in arrays.items() if x.shape == self.gradients[i].shape}
        # each layer's results take the place of what they were made from, where dtypes allow
        buffers = {k: x for k, x in arrays.items() if self.graph.type_of(k).dtype == x.dtype}
        read_only = {k: x for k, x in arrays.items() if k not in buffers}
        if self.values:
            read_only[self.count + len(self.stored) + i] = self.values[i]
        made_fresh = {k: self._empty(k) for k in results if k not in buffers}

        def one(index: Any, carry: tuple[dict[int, Any], dict[int, Any]]) -> Any:
            buffers, fresh = carry
            parts = {k: jax.lax.dynamic_slice_in_dim(x, index, 1) for k, x in (buffers | read_only).items()}
            parts = {k: to_device(x) if self._on_host(k) else x for k, x in parts.items()}
            # apart from the loop's own work, a layer is rounded as the whole is
            starts = (index, *(0,) * (self.gradients[i].ndim - 1))
            outs = jax.lax.optimization_barrier(layered.at(starts, jax.lax.optimization_barrier(parts)))
            outs = {k: to_host(x) if self._on_host(k) else x for k, x in outs.items()}

            def written(k: int, x: Any) -> Any:
                return jax.lax.dynamic_update_slice_in_dim(x, outs[k], index, 0) if x.ndim else outs[k]

            return tuple({k: written(k, x) for k, x in part.items()} for part in (buffers, fresh))

        rounds = self.gradients[i].shape[0]
        buffers, fresh = jax.lax.fori_loop(0, rounds, one, (buffers, made_fresh))
        return [(buffers | fresh)[k] for k in results]

    def _empty(self, k: int) -> Any:
        kind = self.graph.type_of(k)
        return jnp.zeros(kind.shape, kind.dtype)


def _after(x: Any, token: list[Any]) -> Any:
    """`x`, not to be touched before `token` is there."""
    return jax.lax.optimization_barrier((x, token))[0] if token else x
