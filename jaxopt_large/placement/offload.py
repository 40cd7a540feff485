"""State in the host's memory, brought to the device leaf by leaf (Ren et al. 2021, ZeRO-Offload)."""

import dataclasses
from typing import Any

import jax
import optax

from .._compat import to_host
from .._errors import Problems, check_rule
from .._order import Wrapper, check_order
from .._paths import check_glob, leaf_paths, matches
from .._states import check_state
from .._static import ANYTHING, is_placeholder
from .._types import AnyRule, Params, Rule, Updates, make_rule
from ._init_in_place import traced_init
from ._offload_state import OffloadPlan, OffloadState
from ._specs import SMALL, infer_specs
from ._stream import stream, ways
from .shardings import placed_init, state_shardings


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

    Clipping and guards against non-finite gradients stream with the rule, inside or around. A rule that
    needs the state of all parameters for each of them, or decides by a `cond` whether it runs
    (`accumulate`, `optax.MultiSteps`: put them around), still works, and saves nothing; so does a stacked
    parameter without `layers`, since all of its layers come at once. `jl.explain` says which.

    Args:
      rule: any rule, under `jit`; `zero`, clipping and guards belong inside.
      only: a glob over state paths: what to offload.
      layers: a glob over the parameters that are stacked along a first axis of layers: their state is
        streamed layer by layer, in a loop, where the rule works on it element by element and the axes of
        the mesh are Auto; else it streams whole.
      min_bytes: smaller leaves stay on the device, and scalars always.

    Returns:
      The rule; its state is `OffloadState(inner, hosted)`.

    Raises:
      ValueError: it is inside `zero` or `stored`, `only` matches no leaf of the state, or `layers` no
        parameter.
      TypeError: rule is not a rule.

    Source: Ren et al. 2021, arXiv:2101.06840.
    """
    check_rule("offload", rule)
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> OffloadState:
        check_order(Wrapper.OFFLOAD)
        if is_placeholder(params):
            return OffloadState(rule.init(params), ANYTHING)
        hosted = _plan(rule, params, only, layers, min_bytes)
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(params)):
            return OffloadState(hosted.map_hosted(rule.init(params), to_host), hosted)
        shardings = hosted.map_hosted(
            state_shardings(rule, params), lambda s: s.with_memory_kind("pinned_host")
        )
        return OffloadState(placed_init(rule, params, shardings), hosted)

    def update(
        updates: Updates, state: OffloadState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, OffloadState]:
        check_state("offload", OffloadState, state)
        changes, inner = stream(rule, updates, state, params, extra)
        return changes, OffloadState(inner, state.hosted)

    return make_rule(init, update)


def _plan(rule: Rule, params: Params, only: str, layers: str | None, min_bytes: int) -> OffloadPlan:
    """Which leaves of the state go to the host, and which parameter each belongs to."""
    leaves = jax.tree.leaves(params)
    _, state = traced_init(rule.init, params)
    everywhere = [jax.sharding.PartitionSpec()] * len(leaves)
    followed = infer_specs("offload", rule.init, state, params, everywhere, None)
    paths = leaf_paths(state)
    on_host = tuple(
        matches(only, path) and x.ndim > 0 and x.size * x.dtype.itemsize >= min_bytes
        for path, x in zip(paths, jax.tree.leaves(state), strict=True)
    )
    problems = Problems("offload")
    check_glob(problems, "only", only, paths, "leaf of the state")
    check_glob(problems, "layers", layers, leaf_paths(params), "parameter")
    problems.raise_if_any()
    stacked = tuple(layers is not None and matches(layers, path) for path in leaf_paths(params))
    hosted = OffloadPlan(on_host, tuple(f.owner for f in followed), stacked)
    return dataclasses.replace(hosted, ways=ways(rule, params, state, hosted))
