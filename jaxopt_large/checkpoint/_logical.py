"""States as they are written to disk: whole leaves without padding, whatever held them.

The tree is that of the rule without `zero` and `offload`.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from .._compat import auto_axes
from .._device_sums import is_device_sum
from .._errors import message
from .._partition import all_names, devices_along, undivided
from ..placement._cuts import Cut
from ..placement._layout import Layout, ZeroState, is_zero
from ..placement._offload_state import OffloadState, is_offloaded


def unpadded(tree: Any) -> Any:
    """`tree` with every state of `zero` and `offload` in it replaced by the inner one, padding removed.

    The result is what the rule without `zero` would hold, and does not depend on the mesh.

    Raises:
      ValueError: a state has the device axis that `pmap` gives it.
    """

    def leaf(x: Any, cut: Cut, shape: tuple[int, ...]) -> Any:
        if isinstance(x, jax.Array) and x.sharding.memory_kind == "pinned_host":
            x = jax.device_put(x, x.sharding.with_memory_kind("device"))
        return _placed(lambda x: cut.unpad(x, shape), x, _undivided(x, shape))

    return _map_placed(tree, leaf, _summed)


def unpadded_like(tree: Any) -> Any:
    """The shapes, dtypes and shardings that `unpadded(tree)` has, for reading it back.

    Raises:
      ValueError: a leaf that is padded has no sharding.
    """

    def leaf(x: Any, cut: Cut, shape: tuple[int, ...]) -> Any:
        del cut
        if getattr(x, "sharding", None) is None:
            raise ValueError(
                message(
                    "restore",
                    f"a leaf of shape {tuple(x.shape)} has no sharding",
                    do="Pass arrays, or jl.abstract_state(rule, params)",
                )
            )
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=_undivided(x, shape))

    def summed(x: Any) -> Any:
        whole = None if x.sharding is None else undivided(x.sharding)
        return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype, sharding=whole)

    return _map_placed(tree, leaf, summed)


def repadded(values: Any, like: Any) -> Any:
    """The inverse of `unpadded`: `values` padded and placed like the leaves of `like`."""
    nodes, treedef = jax.tree.flatten(like, is_leaf=_is_placed)
    parts = treedef.flatten_up_to(values)

    def padded(x: Any, cut: Cut | None, target: Any) -> Any:
        if cut is None or x.shape == target.shape:
            return x
        # inside `shard_map` a flattened leaf keeps its rank
        return _placed(lambda x: cut.pad(x).reshape(target.shape), x, target.sharding)

    def node(old: Any, new: Any) -> Any:
        if is_offloaded(old):
            return OffloadState(repadded(new, old.inner), old.hosted)
        if is_device_sum(old):
            return jax.tree.map(_on_the_first, new, old)
        if not is_zero(old):
            return new
        old_leaves, inner = jax.tree.flatten(old.inner)
        leaves = [
            padded(x, cut, target)
            for x, cut, target in zip(inner.flatten_up_to(new), old.layout.state, old_leaves, strict=True)
        ]
        return ZeroState(inner.unflatten(leaves), old.layout)

    return treedef.unflatten([node(o, n) for o, n in zip(nodes, parts, strict=True)])


def _map_placed(tree: Any, leaf: Callable[..., Any], summed: Callable[..., Any]) -> Any:
    """`leaf(x, cut, shape)` of what `zero` stores in another shape, `summed(x)` of sums held apart."""

    def node(x: Any) -> Any:
        if is_offloaded(x):
            return _map_placed(x.inner, leaf, summed)
        if is_device_sum(x):
            return jax.tree.map(summed, x)
        if not is_zero(x):
            return x
        leaves, treedef = jax.tree.flatten(x.inner)
        found = []
        for part, cut, shape in zip(leaves, x.layout.state, x.layout.shapes, strict=True):
            if cut is not None and x.layout.mesh is None:
                _check_no_device_axis(part, cut, shape, x.layout)
            found.append(part if cut is None or part.shape == shape else leaf(part, cut, shape))
        return treedef.unflatten(found)

    return jax.tree.map(node, tree, is_leaf=_is_placed)


def _is_placed(x: Any) -> bool:
    return is_zero(x) or is_offloaded(x) or is_device_sum(x)


def _check_no_device_axis(x: Any, cut: Cut, shape: tuple[int, ...], layout: Layout) -> None:
    if x.ndim > max(len(shape), 1) and x.shape[0] == layout.shares:
        raise ValueError(
            message(
                "save",
                f"a leaf of the state has the device axis of pmap, got shape {tuple(x.shape)}",
                do="Pass jl.to_global(state)",
            )
        )
    padded = cut.waste or cut.dim is None
    if padded and math.prod(x.shape) != math.prod(cut.padded_shape(shape)):
        raise ValueError(
            message(
                "save",
                f"a padded leaf of the state is divided over other axes than {layout.axes[0]!r} too, "
                f"got shape {tuple(x.shape)}",
                do="Use zero(rule, mesh, axis) under jit for such parameters",
            )
        )


def _undivided(x: Any, shape: tuple[int, ...]) -> Sharding:
    """A sharding for a leaf whose padding is gone: over another dimension that divides, else whole."""
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding):
        return sharding
    names = all_names(sharding.spec)
    parts = devices_along(names, sharding.mesh)
    for dim, size in enumerate(shape):
        if parts > 1 and size % parts == 0:
            return NamedSharding(sharding.mesh, PartitionSpec(*[None] * dim, names))
    return undivided(sharding)


def _summed(x: Any) -> Any:
    """[devices, ...] -> the sum, [1, ...]."""
    return _placed(lambda x: jnp.sum(x, axis=0, keepdims=True), x, undivided(x.sharding))


def _on_the_first(value: Any, like: Any) -> Any:
    """[1, ...] -> [devices, ...]: the value, then zeros."""
    devices = like.shape[0]

    def spread(x: Any) -> Any:
        return jnp.concatenate([x, jnp.zeros((devices - 1, *x.shape[1:]), x.dtype)])

    return _placed(spread, value, like.sharding)


def _placed(function: Callable[[Any], Any], x: Any, where: Sharding) -> Any:
    """`function(x)`, placed; among Explicit axes its operations need no rule for types."""
    if isinstance(where, NamedSharding) and AxisType.Explicit in where.mesh.axis_types:
        function = auto_axes(function, where.mesh, where.spec)
    return jax.jit(function, out_shardings=where)(x)
