"""One update of a rule whose state is in host memory, taken apart by parameter."""

from typing import Any

import jax
import jax.numpy as jnp

from .._compat import explicit_sharding, to_device, to_host
from .._gradients import in_order
from .._states import explained
from .._types import Params, Rule, State, Updates
from ..passes.engine import SplitUpdate
from ..passes.layers import has_layers, layer_by_layer
from ..passes.passes import Pass
from ..passes.split import keep
from ..tracing.update import traced_update
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
        self.state, self.state_treedef = jax.tree.flatten(inner)
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
            lambda xs: self.state_treedef.unflatten([to_device(x) for x in xs]), self.state
        )
        traced = traced_update(update, self.gradients, on_device, params, keep=keep)
        self.graph = traced.graph
        self.inputs = [*self.gradients, *self.state, *jax.tree.leaves(params)]
        for k, x in enumerate(self.inputs):
            if not self._on_host(k):
                self.graph.give(k, x)
        changes = [self.graph.type_of(i) for i in range(self.count)]
        self.split = SplitUpdate(traced, changes, on_device, 0, copied=False)

    def run(self) -> tuple[Updates, State]:
        results: dict[int, Any] = {}
        token: list[Any] = []
        for i in [*range(self.count), None]:  # parameter by parameter, then what belongs to none
            mine = self._results(i)
            results |= {k: self.inputs[k] for k in mine if self._stays(k)}
            layered = self._layered(i, mine)
            results |= self._by_layers(layered) if layered else {}
            results |= self._whole([k for k in mine if k not in results], token)
            token = [results[k] for k in mine if self._on_host(k)] or token
        changes = [None if i in self.without else results[i] for i in range(self.count)]
        new = [results[self.count + j] for j in range(len(self.state))]
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

    def _stays(self, k: int) -> bool:
        """Is a leaf of the state as it was before, and therefore where it was?"""
        return k >= self.count and self.graph.outputs[k] == self.graph.inputs[k]

    def _needs(self, results: list[int]) -> list[int]:
        """The leaves in host memory that results depend on."""
        inputs = self.graph.inputs_of([self.graph.outputs[k] for k in results])
        return [k for k in inputs if self._on_host(k)]

    def _on_host(self, k: int) -> bool:
        return self.count <= k < self.count + len(self.state) and self.hosted.on_host[k - self.count]

    def _whole(self, results: list[int], token: list[Any]) -> dict[int, Any]:
        for k in self._needs(results):
            if not self.graph.has(k):
                self.graph.give(k, to_device(_after(self.inputs[k], token)))
        outs = self.graph.results(results)
        return {k: to_host(x) if self._on_host(k) else x for k, x in zip(results, outs, strict=True)}

    # --- layer by layer -------------------------------------------------------------------------------

    def _layered(self, i: int | None, results: list[int]) -> Pass | None:
        """The pass that makes all of parameter `i` that is an array, where it is to be and can be layered."""
        if i is None or not self.hosted.layers[i]:
            return None
        if explicit_sharding(self.gradients[i]) is not None:  # slices along a loop's index have no rule
            return None
        pass_ = next((p for p in self.split.alone if i in p.results), None)
        arrays = {k for k in results if self.graph.type_of(k).shape and not self._stays(k)}
        if pass_ is None or arrays != set(pass_.results) or not has_layers(pass_):
            return None
        before = self.graph.inputs_of([*pass_.scalars, *pass_.precomputed])
        return pass_ if all(self.graph.has(k) for k in before) else None

    def _by_layers(self, pass_: Pass) -> dict[int, Any]:
        numbers = {v: k for k, v in enumerate(self.graph.inputs)}
        arrays = [
            self.graph.computed([v])[0] if v in pass_.precomputed else self.inputs[numbers[v]]
            for v in pass_.inputs
        ]
        on_host = {n for n, v in enumerate(pass_.inputs) if v in numbers and self._on_host(numbers[v])}
        to_go = {n for n, k in enumerate(pass_.results) if self._on_host(k)}
        scalars = self.graph.computed(pass_.scalars)
        made = layer_by_layer(pass_, self.split.holds(pass_), arrays, scalars, on_host, to_go)
        return dict(zip(pass_.results, made, strict=True))


def _after(x: Any, token: list[Any]) -> Any:
    """`x`, not to be touched before `token` is there."""
    return jax.lax.optimization_barrier((x, token))[0] if token else x
