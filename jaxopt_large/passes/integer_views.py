"""Arrays as loops on CPU hold them: floats narrower than float32 as integers.

XLA:CPU slices and updates a bfloat16 array by way of a float32 copy of all of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_INTEGERS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def to_integers(x: Array) -> Array:
    """An array, as integers where its floats are narrow."""
    return _bits(x) if is_narrow(x.dtype) else x


def from_integers(x: Array, like: Any) -> Array:
    """The inverse; the dtype is that of `like`."""
    return jax.lax.bitcast_convert_type(x, like.dtype) if is_narrow(like.dtype) else x


def pack(upper: Array, lower: Array) -> Array:
    """Two arrays of 16 bits as one of float32."""
    word = (_bits(upper).astype(jnp.uint32) << 16) | _bits(lower).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(word, jnp.float32)


def unpack(x: Array, upper: Any, lower: Any) -> tuple[Array, Array]:
    """The inverse of `pack`, given the dtypes."""
    word = jax.lax.bitcast_convert_type(x, jnp.uint32)
    halves = (word >> 16).astype(jnp.uint16), (word & 0xFFFF).astype(jnp.uint16)
    first, second = (jax.lax.bitcast_convert_type(h, t) for h, t in zip(halves, (upper, lower), strict=True))
    return first, second


def is_narrow(dtype: Any) -> bool:
    """Is it held as integers?"""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4


def _bits(x: Array) -> Array:
    return jax.lax.bitcast_convert_type(x, _INTEGERS[x.dtype.itemsize])
