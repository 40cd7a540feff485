"""A checksum of an array that does not depend on how devices divide it."""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from .._bits import mix

SMALL = 2**16  # bytes of an array that costs less on the host, with all its like, than device by device
_AT_ONCE = 2**24  # bytes of small arrays in one turn
_SEED = 0x9E3779B9  # of the checksum: a zero at index 0 must count
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # bytes of an element -> its bits


def checksums(arrays: dict[str, Any]) -> dict[str, str]:
    """Path -> checksum. One compilation for all large arrays of a shape, a dtype and a sharding."""
    small, large = {}, {}
    for name, x in on_host(arrays).items():
        (small if is_small(x) else large)[name] = x
    found = _of_small(small)
    sums: dict[str, Any] = {}
    for name, x in large.items():
        if isinstance(x, jax.Array) and _is_hosted(x):
            # one by one: all of the host's arrays need not fit on the device
            sums[name] = jax.device_get(_checksum(on_device(x)))
        else:
            sums[name] = _checksum(x)
    found |= jax.device_get(sums)
    return {name: "".join(f"{int(w):08x}" for w in found[name]) for name in arrays}


def on_host(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays, the small ones on the host."""
    return arrays | jax.device_get({name: x for name, x in arrays.items() if is_small(x)})


def is_small(x: Any) -> bool:
    """Does an array, or a `jax.ShapeDtypeStruct`, cost less on the host?"""
    sharding = getattr(x, "sharding", None)
    return x.size * x.dtype.itemsize <= SMALL and (sharding is None or sharding.is_fully_addressable)


def on_device(x: jax.Array) -> jax.Array:
    """`x`, in device memory."""
    return jax.device_put(x, x.sharding.with_memory_kind("device")) if _is_hosted(x) else x


def _is_hosted(x: jax.Array) -> bool:
    return x.sharding.memory_kind not in (None, "device", "unpinned_host")


def _of_small(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Path -> the words of the checksum; those of a shape and a dtype together."""
    alike: dict[Any, list[str]] = {}
    for name, x in arrays.items():
        alike.setdefault((x.shape, x.dtype), []).append(name)
    found: dict[str, Any] = {}
    for names in alike.values():
        count = max(_AT_ONCE // max(arrays[names[0]].nbytes, 1), 1)
        for turn in (names[k : k + count] for k in range(0, len(names), count)):
            x = np.stack([arrays[name] for name in turn])[..., None]
            x = x.view(x.real.dtype) if np.iscomplexobj(x) else x[..., 0]
            found |= zip(turn, _sums(_host_words(x), np, 1), strict=True)
    return found


def _host_words(x: np.ndarray) -> np.ndarray:
    """As `jax.lax.bitcast_convert_type` to `_WORDS` has it."""
    word = _WORDS[x.dtype.itemsize]
    split = x[..., None] if x.dtype.itemsize > np.dtype(word).itemsize else x
    return np.ascontiguousarray(split).view(word).astype(np.uint32)


@jax.jit
def _checksum(x: Array) -> UInt32[Array, "2"]:
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    x = jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x
    return _sums(jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32), jnp, 0)


def _sums(words: Any, xp: ModuleType, batch: int) -> Any:
    """64 bits that depend on every bit and its place, and not on how the array is divided.

    Each element's bits are mixed with its index in the global array; the sum over elements modulo
    2^32 does not depend on their order.

    Args:
      words: the bits of each element, as uint32.
      xp: `numpy` or `jax.numpy`, of which `words` is.
      batch: how many leading axes count arrays.

    Returns:
      2 words for each array.
    """
    shape = words.shape[batch:]
    place = xp.full((1,) * batch + shape, _SEED + len(shape), np.uint32)
    for dim in range(len(shape)):
        index = xp.arange(shape[dim], dtype=np.uint32).reshape(-1, *(1,) * (len(shape) - dim - 1))
        place = mix(place ^ xp.broadcast_to(index, place.shape))
    once = mix(words ^ xp.broadcast_to(place, words.shape))
    twice = mix(once + xp.broadcast_to(place, words.shape))
    axes = tuple(range(batch, words.ndim))
    return xp.stack([xp.sum(x, axis=axes, dtype=np.uint32) for x in (once, twice)], axis=-1)
