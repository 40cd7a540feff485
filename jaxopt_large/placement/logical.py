"""States as they are written to disk: whole leaves without padding, whatever devices held them."""

from collections.abc import Callable
from typing import Any

import jax

from ._cuts import Cut
from ._layout import ZeroState


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
