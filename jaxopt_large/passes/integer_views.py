"""Arrays as loops on CPU hold them: what is narrower than float32 as integers.

XLA:CPU slices and updates a bfloat16 array by way of a float32 copy of all of it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._encoded import is_encoded

_INTEGERS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def to_words(x: Any) -> Any:
    """An array, encoded or not, with integers for narrow floats."""
    if x is None:
        return None
    if is_encoded(x):
        return x._replace(codes=to_words(x.codes))
    return _bits(x) if is_narrow(x.dtype) else x


def from_words(x: Any, like: Any) -> Any:
    """The inverse; dtypes are those of `like`."""
    if x is None:
        return None
    if is_encoded(x):
        return x._replace(codes=from_words(x.codes, like.codes))
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
