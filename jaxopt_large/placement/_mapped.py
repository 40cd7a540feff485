"""`zero` inside a mapped axis: reduce-scatter, the inner rule on the share, all-gather."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from .._axes import sharded_over, windows
from .._compat import all_gather_invariant, as_varying, axis_size, varies
from .._errors import message
from .._gradients import in_order
from .._numerics import accumulation_dtype
from .._order import Wrapper, check_order, inside
from .._states import check_state, explained
from .._static import ANYTHING, is_placeholder
from .._types import AnyRule, Params, Rule, Scalar, Updates, make_rule
from ._cuts import Cut
from ._layout import Layout, MissingAxisError, check_updates
from ._layout_jit import Options
from ._layout_mapped import my_windows, plan_shares, shapes_of_rank_one
from ._reductions import refuse_reductions
from ._zero_state import ZeroState


def zero_in_mapped_axis(rule: AnyRule, axis_name: str, options: Options) -> Rule:
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> ZeroState:
        check_order(Wrapper.ZERO_MAPPED)
        if is_placeholder(params):
            return ZeroState(rule.init(params), ANYTHING)
        shares = _size(axis_name)
        with sharded_over(axis_name), inside(Wrapper.ZERO):
            layout = plan_shares(rule, params, axis_name, shares, options)
            with windows(my_windows(params, layout)):
                return ZeroState(rule.init(_own(params, layout)), layout)

    def update(
        updates: Updates,
        state: ZeroState,
        params: Params | None = None,
        *,
        weight: Scalar | None = None,
        **extra: Any,
    ) -> tuple[Updates, ZeroState]:
        check_state("zero", ZeroState, state)
        layout = state.layout
        gradients = in_order("zero", updates, params, len(layout.params))
        check_updates(layout, gradients, params)
        _check_shares(layout, axis_name)
        factor = None
        if weight is not None:
            own = jnp.asarray(weight, jnp.float32)
            total = extra["weight"] = jax.lax.psum(own, axis_name)
            # the plain mean of gradients times it is the mean weighted by `weight`
            factor = jnp.where(total > 0, own * layout.shares / jnp.where(total > 0, total, 1.0), 0.0)
        treedef = gradients.treedef
        mine = treedef.unflatten(_mean_shares(gradients.leaves, layout, factor))
        values = None if params is None else _own(params, layout)
        known = windows(my_windows(treedef.unflatten(range(len(layout.params))), layout))
        with sharded_over(axis_name), inside(Wrapper.ZERO), known:
            whole = shapes_of_rank_one((gradients.tree, gradients.tree if params is None else params))
            refuse_reductions(rule, mine, state.inner, values, extra, axis_name, whole)
            # compiled apart from the exchange, the rule rounds as it does unsharded
            mine, values = jax.lax.optimization_barrier((mine, values))
            with explained("zero", rule.init, state.inner, mine, values):
                changes, inner = rule.update(mine, state.inner, values, **extra)
            changes = jax.lax.optimization_barrier(changes)
        there = zip(treedef.flatten_up_to(changes), gradients.leaves, strict=True)
        whole = _gathered([None if g is None else u for u, g in there], layout)
        changes = gradients.changes(treedef.unflatten(whole), params)
        return treedef.unflatten(changes), ZeroState(inner, layout)

    return make_rule(init, update)


def _check_shares(layout: Layout, axis_name: str) -> None:
    shares = _size(axis_name)
    if layout.mesh is not None:
        wrong = "the state was made under jit, for a mesh"
    elif layout.shares != shares:
        wrong = f"the state was made for {layout.shares} devices, got an axis of {shares}"
    else:
        return
    raise ValueError(message("zero", wrong, do=f"Call init inside the same mapped axis {axis_name!r}"))


# --- whole leaves and shares --------------------------------------------------------------------------


def _own(tree: Any, layout: Layout) -> Any:
    """This device's share of a tree of which every device holds all."""
    leaves, treedef = jax.tree.flatten(tree)
    cuts = zip(leaves, layout.params, strict=True)
    return treedef.unflatten([_own_share(x, cut, layout) if cut else x for x, cut in cuts])


def _own_share(x: Array, cut: Cut, layout: Layout) -> Array:
    length, dim = cut.padded // layout.shares, cut.dim or 0
    index = jax.lax.axis_index(layout.axes[0])
    share = jax.lax.dynamic_slice_in_dim(cut.pad(x), index * length, length, axis=dim)
    return share.reshape(cut.share_shape(x.shape, layout.shares))


def _mean_shares(leaves: list[Any], layout: Layout, factor: Array | None) -> list[Any]:
    """This device's shares of the mean over devices, of gradients times this device's `factor`.

    A gradient that is None stays so.
    """
    axis_name, shares = layout.axes[0], layout.shares

    def wide(g: Array, cut: Cut) -> Array:
        x = cut.pad(g).astype(accumulation_dtype(g.dtype))
        if factor is None:
            return x
        # a device that counts for nothing may hold anything, NaN too
        return jnp.where(factor > 0, x * factor.astype(x.dtype), jnp.zeros((), x.dtype))

    def scatter(x: Array, dim: int) -> Array:
        # divided before the sum: compilers fold a division after it into the rule's own constants
        x = as_varying(x, axis_name) / shares
        return jax.lax.psum_scatter(x, axis_name, scatter_dimension=dim, tiled=True)

    def is_mean(g: Array) -> bool:
        return factor is None and _is_reduced(g, axis_name)

    means: list[Any] = list(leaves)
    for i, (g, cut) in enumerate(zip(leaves, layout.params, strict=True)):
        if cut is None or g is None:
            continue
        if is_mean(g):
            means[i] = _own_share(g, cut, layout)
        elif cut.dim is not None:
            means[i] = scatter(wide(g, cut), cut.dim).astype(g.dtype)
    pending = [(i, cut) for i, cut in _flat(layout, leaves) if not is_mean(leaves[i])]
    for members in _by_dtype(pending, [accumulation_dtype(leaves[i].dtype) for i, _ in pending]):
        rows = [wide(leaves[i], cut).reshape(shares, -1) for i, cut in members]
        row = scatter(jnp.concatenate(rows, axis=1), 0)[0]
        for (i, cut), part in zip(
            members, _split(row, [c.padded // shares for _, c in members]), strict=True
        ):
            means[i] = part.astype(leaves[i].dtype).reshape(cut.share_shape(leaves[i].shape, shares))
    return means


def _gathered(changes: list[Any], layout: Layout) -> list[Any]:
    """Whole leaves of which each device holds a share; None stays."""
    axis_name, shares, shapes = layout.axes[0], layout.shares, layout.param_shapes

    def gather(x: Array, dim: int) -> Array:
        return all_gather_invariant(as_varying(x, axis_name), axis_name, axis=dim)

    whole: list[Any] = list(changes)
    for i, (u, cut) in enumerate(zip(changes, layout.params, strict=True)):
        if u is not None and cut is not None and cut.dim is not None:
            whole[i] = cut.unpad(gather(u, cut.dim), shapes[i])
    flat = _flat(layout, changes)
    for members in _by_dtype(flat, [changes[i].dtype for i, _ in flat]):
        rows = gather(jnp.concatenate([changes[i].reshape(1, -1) for i, _ in members], axis=1), 0)
        parts = _split(rows, [c.padded // shares for _, c in members])
        for (i, cut), part in zip(members, parts, strict=True):
            whole[i] = cut.unpad(part.reshape(-1), shapes[i])
    return whole


def _flat(layout: Layout, leaves: list[Any]) -> list[tuple[int, Cut]]:
    """Those of the leaves that are flattened and there: their places and cuts."""
    cuts = zip(leaves, layout.params, strict=True)
    return [
        (i, cut) for i, (x, cut) in enumerate(cuts) if x is not None and cut is not None and cut.dim is None
    ]


def _by_dtype(members: Sequence[tuple[int, Cut]], dtypes: Sequence[Any]) -> list[list[tuple[int, Cut]]]:
    groups: dict[Any, list[tuple[int, Cut]]] = {}
    for member, dtype in zip(members, dtypes, strict=True):
        groups.setdefault(dtype, []).append(member)
    return list(groups.values())


def _split(x: Array, lengths: Sequence[int]) -> list[Array]:
    """Pieces along the last axis."""
    starts = [0, *itertools.accumulate(lengths)][:-1]
    axis = x.ndim - 1
    return [jax.lax.slice_in_dim(x, s, s + n, axis=axis) for s, n in zip(starts, lengths, strict=True)]


def _is_reduced(g: Array, axis_name: str) -> bool:
    """Is it known that all devices hold the same gradient? `shard_map` keeps such types."""
    return varies(jax.lax.axis_index(axis_name), axis_name) and not varies(g, axis_name)


def _size(axis_name: str) -> int:
    try:
        return axis_size(axis_name)
    except NameError:
        raise MissingAxisError(
            message(
                "zero",
                f"axis_name is not a mapped axis here, got {axis_name!r}",
                do="Call init and update inside shard_map or pmap, or give a mesh for jit",
            )
        ) from None
