"""States as they are written to disk: whole leaves without padding, whatever held them.

The tree is that of the rule without `zero` and `offload`.
"""

from collections.abc import Callable
from typing import Any

import jax

from ._cuts import Cut
from ._hosted import OffloadState, is_offloaded
from ._layout import ZeroState, is_zero


def unpadded(tree: Any) -> Any:
    """`tree` with every state of `zero` and `offload` in it replaced by the inner one, padding removed.

    The result is what the rule without `zero` would hold, and does not depend on the mesh.
    """

    def leaf(x: Any, cut: Cut | None, shape: tuple[int, ...]) -> Any:
        if cut is None or x.shape == shape:
            return x
        if isinstance(x, jax.Array) and x.sharding.memory_kind == "pinned_host":
            x = jax.device_put(x, x.sharding.with_memory_kind("device"))
        return cut.load(x, shape)

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
    nodes, treedef = jax.tree.flatten(like, is_leaf=_is_placed)
    parts = treedef.flatten_up_to(values)

    def node(old: Any, new: Any) -> Any:
        if is_offloaded(old):
            return OffloadState(repadded(new, old.inner), old.hosted)
        if not is_zero(old):
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


def _map_zero(tree: Any, leaf: Callable[[Any, Cut | None, tuple[int, ...]], Any]) -> Any:
    def node(x: Any) -> Any:
        if is_offloaded(x):
            return _map_zero(x.inner, leaf)
        if not is_zero(x):
            return x
        leaves, treedef = jax.tree.flatten(x.inner)
        return treedef.unflatten(
            [leaf(*args) for args in zip(leaves, x.layout.state, x.layout.shapes, strict=True)]
        )

    return jax.tree.map(node, tree, is_leaf=_is_placed)


def _is_placed(x: Any) -> bool:
    return is_zero(x) or is_offloaded(x)
