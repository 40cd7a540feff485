"""States as they are written to disk: whole leaves without padding, whatever held them.

The tree is that of the rule without the wrappers that place its state; nodes say what theirs is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from .._compat import auto_axes
from .._errors import message
from .._nodes import StateNode, map_nodes
from .._partition import all_names, devices_along, undivided


def unpadded(tree: Any) -> Any:
    """`tree` with every state of `zero` and `offload` in it replaced by the inner one, padding removed.

    The result is what the rule without `zero` would hold, and does not depend on the mesh.

    Raises:
      ValueError: a state has the device axis that `pmap` gives it.
    """
    return _Values().of(tree)


def unpadded_like(tree: Any) -> Any:
    """The shapes, dtypes and shardings that `unpadded(tree)` has, for reading it back.

    Raises:
      ValueError: a leaf that is padded has no sharding.
    """
    return _Shapes().of(tree)


def repadded(values: Any, like: Any) -> Any:
    """The inverse of `unpadded`: `values` padded and placed like the leaves of `like`."""
    return _Values().back(values, like)


class _Values:
    """Arrays as they are written."""

    def of(self, tree: Any) -> Any:
        return map_nodes(StateNode.to_disk, lambda x: x.to_disk(self), lambda x: x, tree)

    def back(self, values: Any, like: Any) -> Any:
        return map_nodes(
            StateNode.to_disk, lambda old, new: old.from_disk(new, self), lambda old, new: new, like, values
        )

    def without_padding(self, x: Any, unpad: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
        if isinstance(x, jax.Array) and x.sharding.memory_kind == "pinned_host":
            x = jax.device_put(x, x.sharding.with_memory_kind("device"))
        return _placed(unpad, x, _without_padding(x, shape))

    def with_padding(self, x: Any, pad: Callable[[Any], Any], like: Any) -> Any:
        return _placed(pad, x, like.sharding)

    def summed(self, x: Any) -> Any:
        return _placed(lambda x: jnp.sum(x, axis=0, keepdims=True), x, undivided(x.sharding))

    def spread(self, x: Any, like: Any) -> Any:
        """The value, then zeros."""
        devices = like.shape[0]

        def first(x: Any) -> Any:
            return jnp.concatenate([x, jnp.zeros((devices - 1, *x.shape[1:]), x.dtype)])

        return _placed(first, x, like.sharding)


class _Shapes(_Values):
    """What they will be, before there is any."""

    def without_padding(self, x: Any, unpad: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
        del unpad
        if getattr(x, "sharding", None) is None:
            raise ValueError(
                message(
                    "restore",
                    f"a leaf of shape {tuple(x.shape)} has no sharding",
                    do="Pass arrays, or jl.abstract_state(rule, params)",
                )
            )
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=_without_padding(x, shape))

    def summed(self, x: Any) -> Any:
        whole = None if x.sharding is None else undivided(x.sharding)
        return jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype, sharding=whole)


def _without_padding(x: Any, shape: tuple[int, ...]) -> Sharding:
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


def _placed(function: Callable[[Any], Any], x: Any, where: Sharding) -> Any:
    """`function(x)`, placed; among Explicit axes its operations need no rule for types."""
    if isinstance(where, NamedSharding) and AxisType.Explicit in where.mesh.axis_types:
        function = auto_axes(function, where.mesh, where.spec)
    return jax.jit(function, out_shardings=where)(x)
