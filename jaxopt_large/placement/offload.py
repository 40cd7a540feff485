"""State in the host's memory, brought to the device leaf by leaf (Ren et al. 2021, ZeRO-Offload)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from .._axes import is_surrounded_by
from .._compat import to_device, to_host
from .._errors import message
from .._paths import leaf_paths, matches, nearest
from .._types import AnyRule, Params, Rule, State, Updates, make_rule
from ._hosted import Hosted, OffloadState
from ._layout import without_aliases
from ._reductions import is_elementwise
from ._slices import Slices
from ._specs import SMALL, infer_specs
from .shardings import state_shardings


def offload(rule: AnyRule, only: str = "*", *, layers: str | None = None, min_bytes: int = SMALL) -> Rule:
    """Keeps a rule's state in pinned host memory and streams it through the device.

    To move the whole state in and out saves nothing: at the peak all of it is there. Here `update` is
    taken apart by parameter: the state of one comes in, is used, and leaves before the next one comes.
    What parameters share (norms, counters, schedules) is computed once. The numbers are those of the
    rule, bit for bit.

        rule = jl.offload(jl.zero(jl.adamw(3e-4), mesh, "data"))

    Give the step's `jit` the shardings of what it returns, `out_shardings=(...,
    jl.state_shardings(rule, params))`, and arrays that are placed: JAX donates buffers by memory only
    when it knows the memory of all. On CPU, where there is nothing to gain, it needs JAX 0.8.

    A rule that needs the state of all parameters for each of them still works, and saves nothing.

    Args:
      rule: any rule, under `jit`; `zero`, clipping and guards belong inside.
      only: a glob over state paths: what to offload.
      layers: a glob over the parameters that are stacked along a first axis of layers: their state is
        streamed layer by layer, in a loop. The rule must work on them element by element: put clipping
        around, `optax.chain(jl.clip_by_global_norm(1.0), jl.offload(...))`; others stream whole.
      min_bytes: smaller leaves stay on the device, and scalars always.

    Returns:
      The rule; its state is `OffloadState(inner, hosted)`.

    Raises:
      ValueError: it is inside `zero`, or `only` matches no leaf of the state.
      TypeError: rule is not a rule.

    Source: Ren et al. 2021, arXiv:2101.06840.
    """
    if not (hasattr(rule, "init") and hasattr(rule, "update")):
        raise TypeError(message("offload", f"rule is not a rule, got {rule!r}"))
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> OffloadState:
        if is_surrounded_by("zero"):
            raise ValueError(
                message("offload", "the rule is inside zero", do="Write offload(zero(rule, ...))")
            )
        hosted = _plan(rule, params, only, layers, min_bytes)
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
            return OffloadState(hosted.moved(rule.init(params), to_host), hosted)
        shardings = hosted.moved(state_shardings(rule, params), lambda s: s.with_memory_kind("pinned_host"))

        def fresh(params: Params) -> State:
            return without_aliases(rule.init(params), params)

        return OffloadState(jax.jit(fresh, out_shardings=shardings)(params), hosted)

    def update(
        updates: Updates, state: OffloadState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, OffloadState]:
        changes, inner = _Stream(rule, updates, state, params, extra).run()
        return changes, OffloadState(inner, state.hosted)

    return make_rule(init, update)


def _plan(rule: Rule, params: Params, only: str, layers: str | None, min_bytes: int) -> Hosted:
    """Which leaves of the state go to the host, and which parameter each belongs to."""
    leaves = jax.tree.leaves(params)
    state, followed = infer_specs(
        "offload", rule.init, params, [jax.sharding.PartitionSpec()] * len(leaves), None
    )
    paths = leaf_paths(state)
    on_host = tuple(
        matches(only, path) and x.ndim > 0 and x.size * x.dtype.itemsize >= min_bytes
        for path, x in zip(paths, jax.tree.leaves(state), strict=True)
    )
    if paths and not any(matches(only, path) for path in paths):
        raise ValueError(
            message(
                "offload",
                f"only matches no leaf of the state, got {only!r}",
                allowed=f"the nearest are {nearest(only, paths)}",
            )
        )
    stacked = tuple(layers is not None and matches(layers, path) for path in leaf_paths(params))
    return Hosted(on_host, tuple(f.owner for f in followed), stacked)


@dataclasses.dataclass
class _Stream:
    """One update, taken apart by parameter."""

    rule: Rule
    updates: Updates
    state: OffloadState
    params: Params | None
    extra: dict[str, Any]

    def run(self) -> tuple[Updates, State]:
        hosted = self.state.hosted
        gradients, treedef = jax.tree.flatten(self.updates)
        stored, state_treedef = jax.tree.flatten(self.state.inner)
        values = jax.tree.leaves(self.params)
        slices = Slices(self._update, (self.updates, self._on_device(stored, state_treedef), self.params))
        count = len(gradients)
        for i, x in enumerate([*gradients, *stored, *values]):
            if not (count <= i < count + len(stored) and hosted.on_host[i - count]):
                slices.give(i, x)
        changes: list[Any] = [None] * count
        new: list[Any] = [None] * len(stored)
        token: list[Any] = []
        for i in [*range(count), None]:  # parameter by parameter, then what belongs to none
            mine = [j for j, owner in enumerate(hosted.owners) if owner == i]
            results = ([i] if i is not None else []) + [count + j for j in mine]
            if i is not None and hosted.layers[i] and self._by_layers(slices, results, mine, i):
                outs = self._scan(slices, results, mine, i, stored, gradients, values)
            else:
                for k in slices.inputs_of(results):
                    if not slices.has(k):
                        slices.give(k, to_device(_after(stored[k - count], token)))
                outs = slices.results(results)
                outs = [
                    to_host(x) if k >= count and hosted.on_host[k - count] else x
                    for k, x in zip(results, outs, strict=True)
                ]
            for k, x in zip(results, outs, strict=True):
                if k < count:
                    changes[k] = x
                else:
                    new[k - count] = x
            moved = [new[j] for j in mine if hosted.on_host[j]]
            token = moved or token
        return treedef.unflatten(changes), state_treedef.unflatten(new)

    def _update(self, updates: Updates, inner: State, params: Params | None) -> tuple[Updates, State]:
        return self.rule.update(updates, inner, params, **self.extra)

    def _on_device(self, stored: list[Any], treedef: Any) -> State:
        """The state's shapes as they are on the device."""
        return jax.eval_shape(lambda xs: treedef.unflatten([to_device(x) for x in xs]), stored)

    def _by_layers(self, slices: Slices, results: list[int], mine: list[int], i: int) -> bool:
        """May parameter `i` be taken layer by layer?"""
        count = len(jax.tree.leaves(self.updates))
        whole = {i, *(count + j for j in mine), *self._value_index(i)}
        foreign = [k for k in slices.inputs_of(results) if k not in whole and not slices.has(k)]
        if foreign or slices.jaxpr.outvars[i].aval.dtype != slices.jaxpr.invars[i].aval.dtype:
            return False
        return is_elementwise(slices.jaxpr, whole, results)

    def _value_index(self, i: int) -> list[int]:
        count, stored = len(jax.tree.leaves(self.updates)), len(jax.tree.leaves(self.state.inner))
        return [count + stored + i] if self.params is not None else []

    def _scan(
        self,
        slices: Slices,
        results: list[int],
        mine: list[int],
        i: int,
        stored: list[Any],
        gradients: list[Any],
        values: list[Any],
    ) -> list[Any]:
        """The update of one stacked parameter, a layer at a time."""
        hosted, count = self.state.hosted, len(gradients)
        arrays = {i: gradients[i], **{count + j: stored[j] for j in mine if stored[j].ndim}}
        if self.params is not None:
            arrays[count + len(stored) + i] = values[i]
        layer = slices.reshaped({k: (1, *x.shape[1:]) for k, x in arrays.items()})
        for k in layer.inputs_of(results):
            if k not in arrays:
                layer.give(k, slices.value(k))
        layer.advance(results)  # what layers share is computed before the loop

        def one(layer_index: Any, carry: tuple[dict[int, Any], list[Any]]) -> Any:
            buffers, _ = carry
            part = layer.copy()
            for k, x in {**rest, **buffers}.items():
                part.give(k, _on_device_if(jax.lax.dynamic_slice_in_dim(x, layer_index, 1), on_host(k)))
            outs = dict(zip(results, part.results(results), strict=True))
            # each layer's results take the place of what they were made from
            written = {
                k: jax.lax.dynamic_update_slice_in_dim(
                    x, to_host(outs[k]) if on_host(k) else outs[k], layer_index, 0
                )
                for k, x in buffers.items()
            }
            return written, [outs[k] for k in results if k not in buffers]

        def on_host(k: int) -> bool:
            return count <= k < count + len(stored) and hosted.on_host[k - count]

        buffers = {k: arrays[k] for k in results if k in arrays}
        rest = {k: x for k, x in arrays.items() if k not in buffers}
        lone = [
            jnp.zeros(v.aval.shape, v.aval.dtype)
            for v in (layer.jaxpr.outvars[k] for k in results if k not in buffers)
        ]
        buffers, lone = jax.lax.fori_loop(0, gradients[i].shape[0], one, (buffers, lone))
        others = iter(lone)
        return [buffers[k] if k in buffers else next(others) for k in results]


def _on_device_if(x: Any, on_host: bool) -> Any:
    return to_device(x) if on_host else x


def _after(x: Any, token: list[Any]) -> Any:
    """`x`, not to be touched before `token` is there."""
    return jax.lax.optimization_barrier((x, token))[0] if token else x
