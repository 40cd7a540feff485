"""Leaves as they stand on disk: what orbax does not hold is kept as unsigned integers, bit for bit."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import Problems, message
from .._paths import leaf_paths
from ._checksums import is_small, on_device
from ._chunks import moved, reading_places
from ._manifest import CheckpointError
from ._orbax import checkpointer, chunks, restore_arguments, save_arguments, with_one_error

# less than a byte -> its bits
_NARROW = {
    "int2": "uint2",
    "uint2": "uint2",
    "int4": "uint4",
    "uint4": "uint4",
    "float4_e2m1fn": "uint4",
}


class Form(NamedTuple):
    """What a leaf is, and the array that stands for it on disk.

    Attributes:
      shape: the leaf's.
      dtype: the leaf's, by name: "float32", "int4", "key<fry>".
      disk_shape: the array's.
      disk_dtype: the array's, by name.
    """

    shape: tuple[int, ...]
    dtype: str
    disk_shape: tuple[int, ...]
    disk_dtype: str

    def __str__(self) -> str:
        same = (self.shape, self.dtype) == (self.disk_shape, self.disk_dtype)
        stored = "" if same else f" stored as {self.disk_dtype}{list(self.disk_shape)}"
        return f"{self.dtype}{list(self.shape)}{stored}"

    def entry(self) -> dict[str, Any]:
        """For the manifest."""
        found: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype}
        if (self.shape, self.dtype) != (self.disk_shape, self.disk_dtype):
            found["stored"] = {"shape": list(self.disk_shape), "dtype": self.disk_dtype}
        return found

    @classmethod
    def of_entry(cls, entry: dict[str, Any]) -> "Form":
        stored = entry.get("stored", entry)
        return cls(tuple(entry["shape"]), entry["dtype"], tuple(stored["shape"]), stored["dtype"])

    def target(self, sharding: Any = None) -> jax.ShapeDtypeStruct:
        """The array to read."""
        return jax.ShapeDtypeStruct(self.disk_shape, jnp.dtype(self.disk_dtype), sharding=sharding)


def named_leaves(who: str, tree: Any) -> dict[str, Any]:
    """Path -> leaf.

    Raises:
      ValueError: two leaves have one path.
      TypeError: leaves that no checkpoint holds; all are named.
    """
    names = [name or "value" for name in leaf_paths(tree)]
    named = dict(zip(names, jax.tree.leaves(tree), strict=True))
    if len(named) != len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(message(who, f"paths are not unique, got {twice!r}"))
    problems = Problems(who)
    for name, x in named.items():
        if not _is_storable(_dtype(x)):
            problems.add(
                f"a checkpoint cannot hold this leaf, got {type(x).__name__} of dtype {_dtype(x)}",
                at=name,
                allowed="arrays of numbers or booleans, Python numbers and random keys",
                do="Leave it out, or pass it in metadata",
            )
    problems.raise_if_any(TypeError)
    return named


def form(x: Any) -> Form:
    """How a leaf, or a `jax.ShapeDtypeStruct`, stands on disk."""
    dtype, shape = _dtype(x), tuple(np.shape(x))
    name = _name_of(dtype)
    disk_shape, stored = shape, name
    if _is_key(dtype):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
        disk_shape, stored = tuple(data.shape), str(data.dtype)
    elif stored in _NARROW:
        stored = "uint8"
    elif not _is_jax(x) and dtype.itemsize >= 8:  # without x64 JAX would cut 64 bits down to 32
        disk_shape, stored = (*shape, dtype.itemsize // 4), "uint32"
    elif not dtype.isnative:
        stored = _name_of(dtype.newbyteorder("="))
    return Form(shape, name, disk_shape, stored)


def to_disk(x: Any) -> Any:
    """The array that stands for a leaf on disk."""
    dtype = _dtype(x)
    if _is_key(dtype):
        return jax.random.key_data(x)
    if _name_of(dtype) in _NARROW:
        bits = jax.lax.bitcast_convert_type(on_device(jnp.asarray(x)), jnp.dtype(_NARROW[_name_of(dtype)]))
        return bits.astype(jnp.uint8)
    if _is_jax(x):
        return x
    host = np.asarray(x)
    if dtype.itemsize >= 8:
        return host.reshape(*host.shape, 1).view(np.uint32)
    return host.astype(dtype.newbyteorder("="), copy=False)


def from_disk(x: Array, like: Any) -> Any:
    """The leaf that was stored, as the kind of thing that `like` is."""
    dtype = _dtype(like)
    if _is_key(dtype):
        return jax.random.wrap_key_data(x, impl=_key_impl(like))
    if _name_of(dtype) in _NARROW:
        bits = on_device(x).astype(jnp.dtype(_NARROW[_name_of(dtype)]))
        x = jax.device_put(jax.lax.bitcast_convert_type(bits, dtype), x.sharding)
    if _is_jax(like):
        return x
    host, stored = np.asarray(like), np.asarray(x)
    wide = dtype.itemsize >= 8
    value = stored.view(dtype).reshape(host.shape) if wide else stored.astype(dtype, copy=False)
    return value if isinstance(like, np.ndarray) else type(like)(value.item())


def write_arrays(folder: Path, arrays: dict[str, Any]) -> None:
    """Writes arrays with orbax, which takes no empty ones.

    Raises:
      OSError: the system refused.
    """

    def write() -> None:
        with checkpointer(_largest(arrays)) as writer:
            writer.save(folder, args=save_arguments(arrays))

    with_one_error(write)


def read_arrays(folder: Path, targets: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Reads arrays: large ones to where `targets` has them, or by chunks, small ones to the host.

    `placed` moves what is not where it belongs.

    Raises:
      CheckpointError: a file is damaged.
    """
    if not targets:
        return {}

    def wanted(name: str, x: jax.ShapeDtypeStruct, places: Mapping[str, Any]) -> Any:
        if is_small(x):
            return np.empty(x.shape, x.dtype)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=places.get(name) or _sharding_of(x))

    def read() -> dict[str, Any]:
        with checkpointer(_largest(targets)) as reader:
            places = {} if jax.process_count() == 1 else reading_places(chunks(reader, folder), targets)
            each = {name: wanted(name, x, places) for name, x in targets.items()}
            return dict(reader.restore(folder, args=restore_arguments(each)))

    try:
        return with_one_error(read)
    except Exception as error:  # tensorstore and orbax raise many kinds for a damaged file
        raise CheckpointError(
            message(
                "restore",
                f"checkpoint {str(folder.parent)!r} is damaged, its arrays cannot be read",
                do="Restore an earlier one",
            )
        ) from error


def _largest(arrays: Mapping[str, Any]) -> int:
    return max((x.size * x.dtype.itemsize for x in arrays.values()), default=0)


def placed(arrays: dict[str, Any], targets: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
    """Arrays that were read, where `targets` has them; `arrays` is empty then."""
    here = {name: _sharding_of(targets[name]) for name, x in arrays.items() if isinstance(x, np.ndarray)}
    found = jax.device_put({name: arrays.pop(name) for name in here}, here)
    for name in list(arrays):  # one at a time: they are in memory twice
        x, place = arrays.pop(name), targets[name].sharding
        found[name] = x if place is None or x.sharding == place else moved(x, place)
    return found


def _sharding_of(x: jax.ShapeDtypeStruct) -> Any:
    return x.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def _is_jax(x: Any) -> bool:
    return isinstance(x, jax.Array | jax.ShapeDtypeStruct)


@functools.cache
def _name_of(dtype: Any) -> str:
    return str(dtype)  # which takes NumPy long


def _dtype(x: Any) -> Any:
    return x.dtype if _is_jax(x) else np.asarray(x).dtype


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_storable(dtype: Any) -> bool:
    if _is_key(dtype) or dtype.kind in "bmM":  # booleans, and NumPy's dates
        return True
    return jnp.issubdtype(dtype, np.number) and (
        dtype.itemsize <= 8 or (dtype.kind, dtype.itemsize) == ("c", 16)
    )


def _key_impl(x: Any) -> Any:
    """The implementation of a random key; of a shape, too."""
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct((), x.dtype))
    return found[0]
