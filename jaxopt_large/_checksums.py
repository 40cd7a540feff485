"""A checksum of an array that does not depend on how devices divide it."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from ._bits import mix

_SEED = 0x9E3779B9  # of the checksum: a zero at index 0 must count
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # bytes of an element -> its bits


def checksums(arrays: dict[str, Any]) -> dict[str, str]:
    """Path -> checksum. One compilation for all arrays of a shape, a dtype and a sharding."""
    found: dict[str, Any] = {}
    for name, x in arrays.items():
        if isinstance(x, jax.Array) and _is_hosted(x):
            # one by one: all of the host's arrays need not fit on the device
            found[name] = jax.device_get(_checksum(on_device(x)))
        else:
            found[name] = _checksum(x)
    return {name: _text(words) for name, words in jax.device_get(found).items()}


def _text(words: Any) -> str:
    return "".join(f"{int(w):08x}" for w in words)


def on_device(x: jax.Array) -> jax.Array:
    """`x`, in device memory."""
    return jax.device_put(x, x.sharding.with_memory_kind("device")) if _is_hosted(x) else x


def _is_hosted(x: jax.Array) -> bool:
    return x.sharding.memory_kind not in (None, "device", "unpinned_host")


@jax.jit
def _checksum(x: Array) -> UInt32[Array, "2"]:
    """64 bits that depend on every bit and its place, and not on how the array is divided.

    Each element's bits are mixed with its index in the global array; the sum over elements modulo
    2^32 does not depend on their order.
    """
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    x = jnp.stack([x.real, x.imag], axis=-1) if jnp.iscomplexobj(x) else x
    words = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.full(words.shape, _SEED + words.ndim, jnp.uint32)
    for dim in range(words.ndim):
        place = mix(place ^ jax.lax.broadcasted_iota(jnp.uint32, words.shape, dim))
    once = mix(words ^ place)
    return jnp.stack([jnp.sum(once, dtype=jnp.uint32), jnp.sum(mix(once + place), dtype=jnp.uint32)])
