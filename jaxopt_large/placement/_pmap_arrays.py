"""Arrays with a leading device axis, as `pmap` takes and returns them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from .._compat import make_mesh, per_device_sharding
from .._errors import message

_AXIS = "devices"


def copies_of(x: Any) -> list[Array]:
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


def devices_of(x: Array) -> list[Any]:
    """In the order of the device axis."""
    return [s.device for s in sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)]


def assembled(parts: list[Array], shape: tuple[int, ...]) -> Array:
    """One array with a device axis from the parts that lie on the devices."""
    whole = (len(parts), *shape)
    devices = [next(iter(p.devices())) for p in parts]
    return jax.make_array_from_single_device_arrays(
        whole, per_device_sharding(whole, devices), [p.reshape(1, *shape) for p in parts]
    )


def mesh_over(x: Array, mesh: Mesh | None) -> Mesh:
    """A mesh with one axis over the devices of an array; `mesh` where it is given and is one."""
    devices = devices_of(x)
    if mesh is None:
        return make_mesh((len(devices),), (_AXIS,), devices=devices)
    if list(mesh.devices.flat) != devices or len(mesh.axis_names) != 1:
        raise ValueError(
            message("to_global", "the mesh is not one axis over the devices of the arrays", do="Leave it out")
        )
    return mesh


def whole(x: Array, mesh: Mesh) -> Array:
    """What every device has a copy of, as one replicated array."""
    copies = copies_of(x)
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_single_device_arrays(x.shape[1:], sharding, copies)


def copied(value: Any, like: Array) -> Array:
    """A copy of a value on each device of `like`."""
    value = jnp.asarray(value)
    check_shape(value, like.shape[1:])
    return assembled([jax.device_put(value, d) for d in devices_of(like)], value.shape)


def check_shape(x: Any, expected: tuple[int, ...]) -> None:
    """Raises unless a value has the shape of its place."""
    if np.shape(x) != tuple(expected):
        wrong = f"a value has shape {np.shape(x)}"
        raise ValueError(message("to_per_device", wrong, allowed=f"its place has {tuple(expected)}"))
