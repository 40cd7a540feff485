"""The bridge to `pmap`: arrays with a leading device axis, and global arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from .._compat import make_mesh, per_device_sharding
from .._device_sums import is_device_sum
from .._errors import message
from .._partition import normal_spec
from ._cuts import Cut
from ._layout import Layout, ZeroState, is_zero

_AXIS = "devices"


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
        return _assembled([jax.device_put(x, d) for d in places], x.shape)

    return jax.tree.map(leaf, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every leaf, on that device; `x[0]` would gather from all.

    Raises:
      ValueError: a leaf has no device axis.

    >>> jl.unreplicate(jl.replicate(jnp.arange(3))).tolist()
    [0, 1, 2]
    """
    return jax.tree.map(lambda x: _copies(x)[0], tree)


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

    def node(x: Any) -> Any:
        if is_device_sum(x):
            return jax.tree.map(lambda part: _summed(part, mesh), x)
        if not is_zero(x):
            return _whole(x, mesh)
        leaves, treedef = jax.tree.flatten(x.inner)
        layout: Layout = x.layout
        return treedef.unflatten(
            [
                _whole(leaf, mesh) if cut is None else _joined(leaf, cut, shape, mesh)
                for leaf, cut, shape in zip(leaves, layout.state, layout.shapes, strict=True)
            ]
        )

    return jax.tree.map(node, tree, is_leaf=_is_special)


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
    nodes, treedef = jax.tree.flatten(like, is_leaf=_is_special)
    parts = treedef.flatten_up_to(values)

    def copied(value: Any, old: Any) -> Array:
        value = jnp.asarray(value)
        _check_shape(value, old.shape[1:])
        return _assembled([jax.device_put(value, d) for d in _devices(old)], value.shape)

    def first(value: Any, old: Any) -> Array:
        """The value on the first device, zeros on the others."""
        value = jnp.asarray(value)
        _check_shape(value, old.shape[1:])
        first, *others = _devices(old)
        empty = jnp.zeros_like(value)
        parts = [jax.device_put(value, first), *(jax.device_put(empty, d) for d in others)]
        return _assembled(parts, value.shape)

    def node(old: Any, new: Any) -> Any:
        if is_device_sum(old):
            return jax.tree.map(first, new, old)
        if not is_zero(old):
            return copied(new, old)
        old_leaves, inner = jax.tree.flatten(old.inner)
        leaves = [
            copied(x, target) if cut is None else _divided(x, cut, shape, old.layout, target)
            for x, cut, shape, target in zip(
                inner.flatten_up_to(new), old.layout.state, old.layout.shapes, old_leaves, strict=True
            )
        ]
        return ZeroState(inner.unflatten(leaves), old.layout)

    return treedef.unflatten([node(o, n) for o, n in zip(nodes, parts, strict=True)])


def _is_special(x: Any) -> bool:
    return is_zero(x) or is_device_sum(x)


def _check_shape(x: Any, expected: tuple[int, ...]) -> None:
    if np.shape(x) != tuple(expected):
        wrong = f"a value has shape {np.shape(x)}"
        raise ValueError(message("to_per_device", wrong, allowed=f"its place has {tuple(expected)}"))


def _summed(x: Array, mesh: Mesh | None) -> Array:
    """[devices, 1, ...] -> the sum, [1, ...], replicated."""
    whole = NamedSharding(_mesh(x, mesh), PartitionSpec())
    return jax.jit(lambda parts: jnp.sum(parts, axis=0), out_shardings=whole)(x)


def _copies(x: Any) -> list[Array]:
    """Each device's part, in the order of the device axis, without that axis."""
    if not isinstance(x, jax.Array) or not x.ndim:
        raise ValueError(
            message(
                "unreplicate",
                f"a leaf has no device axis, got {jnp.shape(x)}",
                allowed="arrays that pmap or replicate returned",
            )
        )
    shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
    if any(s.data.shape[0] != 1 for s in shards):
        raise ValueError(
            message(
                "unreplicate",
                f"the first axis of a leaf of shape {x.shape} is not a device axis",
                allowed="arrays that pmap or replicate returned",
            )
        )
    return [s.data.reshape(x.shape[1:]) for s in shards]


def _devices(x: Array) -> list[Any]:
    return [s.device for s in sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)]


def _assembled(parts: list[Array], shape: tuple[int, ...]) -> Array:
    """One array with a device axis from the parts that lie on the devices."""
    whole = (len(parts), *shape)
    devices = [next(iter(p.devices())) for p in parts]
    return jax.make_array_from_single_device_arrays(
        whole, per_device_sharding(whole, devices), [p.reshape(1, *shape) for p in parts]
    )


def _mesh(x: Array, mesh: Mesh | None) -> Mesh:
    devices = _devices(x)
    if mesh is None:
        return make_mesh((len(devices),), (_AXIS,), devices=devices)
    if list(mesh.devices.flat) != devices or len(mesh.axis_names) != 1:
        raise ValueError(
            message("to_global", "the mesh is not one axis over the devices of the arrays", do="Leave it out")
        )
    return mesh


def _whole(x: Array, mesh: Mesh | None) -> Array:
    copies = _copies(x)
    sharding = NamedSharding(_mesh(x, mesh), PartitionSpec())
    return jax.make_array_from_single_device_arrays(x.shape[1:], sharding, copies)


def _joined(x: Array, cut: Cut, shape: tuple[int, ...], mesh: Mesh | None) -> Array:
    mesh = _mesh(x, mesh)
    spec = normal_spec([()] * (cut.dim or 0) + [mesh.axis_names])
    shares = [c.reshape(-1) if cut.dim is None else c for c in _copies(x)]
    stored = jax.make_array_from_single_device_arrays(
        cut.padded_shape(shape), NamedSharding(mesh, spec), shares
    )
    if cut.dim is not None and not cut.waste:
        return stored
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda s: cut.unpad(s, shape), out_shardings=whole)(stored)


def _divided(x: Any, cut: Cut, shape: tuple[int, ...], layout: Layout, like: Array) -> Array:
    devices = _devices(like)
    _check_shape(x, shape)
    stored = cut.pad(jnp.asarray(x))
    length = cut.padded // layout.shares
    parts = [
        jax.device_put(jax.lax.slice_in_dim(stored, i * length, (i + 1) * length, axis=cut.dim or 0), d)
        for i, d in enumerate(devices)
    ]
    share = cut.share_shape(shape, layout.shares)
    return _assembled([p.reshape(share) for p in parts], share)
