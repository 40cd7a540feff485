"""States as they are written to disk: whole leaves without padding, whatever devices held them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._cuts import Cut
from ._layout import Layout, ZeroState


def unpadded(tree: Any) -> Any:
    """`tree` with every `ZeroState` in it replaced by its inner state, padding removed.

    The result is what the rule without `zero` would hold, and does not depend on the mesh.
    """

    def leaf(x: Any, cut: Cut | None, shape: tuple[int, ...]) -> Any:
        return x if cut is None or x.shape == shape else cut.load(x, shape)

    return _map_zero(tree, leaf)


def unpadded_like(tree: Any) -> Any:
    """The shapes, dtypes and shardings that `unpadded(tree)` has, for reading it back."""

    def leaf(x: Any, cut: Cut | None, shape: tuple[int, ...]) -> Any:
        if cut is None or x.shape == shape:
            return x
        # a length that does not divide cannot be sharded; it is read whole and divided afterwards
        replicated = jax.sharding.NamedSharding(x.sharding.mesh, jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=replicated)

    return _map_zero(tree, leaf)


def repadded(values: Any, like: Any) -> Any:
    """The inverse of `unpadded`: `values` padded and placed like the leaves of `like`."""
    nodes, treedef = jax.tree.flatten(like, is_leaf=_is_zero)
    parts = treedef.flatten_up_to(values)

    def node(old: Any, new: Any) -> Any:
        if not _is_zero(old):
            return new
        old_leaves, inner = jax.tree.flatten(old.inner)
        leaves = [
            x
            if cut is None or x.shape == target.shape
            else jax.jit(cut.store, out_shardings=target.sharding)(x)
            for x, cut, target in zip(inner.flatten_up_to(new), old.layout.state, old_leaves, strict=True)
        ]
        return ZeroState(inner.unflatten(leaves), old.layout)

    return treedef.unflatten([node(o, n) for o, n in zip(nodes, parts, strict=True)])


def joined(tree: Any) -> Any:
    """What `pmap` keeps per device (a leading axis) as whole arrays on the host.

    Leaves under `zero(..., axis_name=...)` are joined along the dimension that was cut; of all others
    every device holds the same, and the first copy is taken.
    """

    def leaf(x: Any, cut: Cut | None, shape: tuple[int, ...]) -> Any:
        if cut is None:
            return _first(x)
        shares = np.asarray(x)
        if cut.dim is None:
            return shares.reshape(-1)[: cut.size].reshape(shape)
        whole = np.concatenate(list(shares), axis=cut.dim)
        return whole[(slice(None),) * cut.dim + (slice(0, cut.size),)]

    return _map_zero(tree, leaf, other=_first)


def divided(values: Any, like: Any) -> Any:
    """The inverse of `joined`: host arrays with a leading device axis, in the structure of `like`."""
    nodes, treedef = jax.tree.flatten(like, is_leaf=_is_zero)
    parts = treedef.flatten_up_to(values)

    def copies(x: Any, target: Any) -> Any:
        x = np.asarray(x)
        return np.broadcast_to(x, (target.shape[0], *x.shape))

    def node(old: Any, new: Any) -> Any:
        if not _is_zero(old):
            return copies(new, old)
        old_leaves, inner = jax.tree.flatten(old.inner)
        leaves = [
            copies(x, target) if cut is None else _shares(x, cut, old.layout)
            for x, cut, target in zip(inner.flatten_up_to(new), old.layout.state, old_leaves, strict=True)
        ]
        return ZeroState(inner.unflatten(leaves), old.layout)

    return treedef.unflatten([node(o, n) for o, n in zip(nodes, parts, strict=True)])


def _map_zero(
    tree: Any,
    leaf: Callable[[Any, Cut | None, tuple[int, ...]], Any],
    other: Callable[[Any], Any] = lambda x: x,
) -> Any:
    def node(x: Any) -> Any:
        if not _is_zero(x):
            return other(x)
        leaves, treedef = jax.tree.flatten(x.inner)
        return treedef.unflatten(
            [leaf(*args) for args in zip(leaves, x.layout.state, x.layout.shapes, strict=True)]
        )

    return jax.tree.map(node, tree, is_leaf=_is_zero)


def _is_zero(x: Any) -> bool:
    return isinstance(x, ZeroState)


def _first(x: Any) -> Any:
    """One device's copy, without a gather over the others."""
    shard = x.addressable_shards[0].data
    return np.asarray(shard).reshape(x.shape[1:])


def _shares(x: Any, cut: Cut, layout: Layout) -> Any:
    whole = np.asarray(cut.store(jnp.asarray(x)))
    parts = np.split(whole, layout.shares, axis=cut.dim or 0)
    return np.stack([p.reshape(cut.share_shape(np.shape(x), layout.shares)) for p in parts])
