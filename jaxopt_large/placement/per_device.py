"""The bridge to `pmap`: arrays with a leading device axis, and global arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from .._nodes import StateNode, map_nodes
from ._pmap_arrays import assembled, check_shape, copied, copies_of, devices_of, mesh_over, whole


def replicate(tree: Any, devices: Sequence[Any] | None = None) -> Any:
    """A copy of every leaf on each device, with a leading device axis, as `pmap` takes it.

    Each device gets its copy straight from the one that is there; no stack of copies is made.

    Args:
      tree: any tree of arrays and numbers.
      devices: by default the local ones, in the order of `jax.local_devices()`.

    >>> jl.replicate({"w": jnp.ones(3)})["w"].shape == (jax.local_device_count(), 3)
    True
    """
    places = list(jax.local_devices() if devices is None else devices)

    def leaf(x: Any) -> Array:
        x = jnp.asarray(x)
        return assembled([jax.device_put(x, d) for d in places], x.shape)

    return jax.tree.map(leaf, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every leaf, on that device; `x[0]` would gather from all.

    Raises:
      ValueError: a leaf has no device axis.

    >>> jl.unreplicate(jl.replicate(jnp.arange(3))).tolist()
    [0, 1, 2]
    """
    return jax.tree.map(lambda x: copies_of(x)[0], tree)


def to_global(tree: Any, mesh: Mesh | None = None) -> Any:
    """What `pmap` keeps per device, as global arrays: the form of checkpoints, and of `jit`.

    A state under `zero(..., axis_name=...)` becomes that of the rule without `zero`: its leaves are
    whole arrays, divided over the mesh where they divide evenly. What deferred accumulators hold apart
    is summed. Of all other leaves the devices hold the same, and the result is replicated. Nothing passes
    through the host.

    Args:
      tree: arrays with a leading device axis, `ZeroState`s among them.
      mesh: a mesh with one axis over the same devices; made by default.

    Raises:
      ValueError: a leaf has no device axis.
    """

    return _Global(mesh).of(tree)


def to_per_device(values: Any, like: Any) -> Any:
    """The inverse of `to_global`.

    Args:
      values: global arrays, or host arrays, in the structure of `to_global(like)`.
      like: arrays with a leading device axis, `ZeroState`s among them; their values are not used.

    Returns:
      A tree like `like`.

    Raises:
      ValueError: a value has another shape than its place in `like`.
    """
    return _Global(None).back(values, like)


class _Global:
    """Global arrays in the place of those with a device axis; nodes of a state say what theirs are."""

    def __init__(self, mesh: Mesh | None):
        self._mesh = mesh

    def of(self, tree: Any) -> Any:
        return map_nodes(
            StateNode.to_global, lambda x: x.to_global(self), lambda x: whole(x, self.mesh_of(x)), tree
        )

    def back(self, values: Any, like: Any) -> Any:
        return map_nodes(
            StateNode.to_per_device,
            lambda old, new: old.to_per_device(new, self),
            lambda old, new: copied(new, old),
            like,
            values,
        )

    def mesh_of(self, x: Array) -> Mesh:
        return mesh_over(x, self._mesh)

    def summed(self, x: Array) -> Array:
        everywhere = NamedSharding(self.mesh_of(x), PartitionSpec())
        return jax.jit(lambda parts: jnp.sum(parts, axis=0), out_shardings=everywhere)(x)

    def spread(self, x: Any, like: Array) -> Array:
        """The value on the first device, zeros on the others."""
        value = jnp.asarray(x)
        check_shape(value, like.shape[1:])
        first, *others = devices_of(like)
        empty = jnp.zeros_like(value)
        parts = [jax.device_put(value, first), *(jax.device_put(empty, d) for d in others)]
        return assembled(parts, value.shape)
