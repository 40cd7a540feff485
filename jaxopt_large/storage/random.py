"""Random bits without a state: a hash of seed, path, step and global index.

The same element of the same leaf gets the same bits at the same step, on every mesh and in every mode.
"""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from .._bits import mix
from .._window import Window

_COLUMN = 0x9E3779B9  # odd, so that columns of a row keep apart


def leaf_key(seed: UInt32[Array, ""], name: str, step: Any) -> UInt32[Array, ""]:
    """What one leaf draws from at one step."""
    return _leaf_key(seed, np.uint32(zlib.crc32(name.encode())), step)


@jax.jit  # traced once for all leaves
def _leaf_key(seed: UInt32[Array, ""], name: UInt32[Array, ""], step: Any) -> UInt32[Array, ""]:
    return mix(mix(seed ^ name) ^ step.astype(jnp.uint32))


def random_bits(
    key: UInt32[Array, ""], shape: tuple[int, ...], window: Window | None = None
) -> UInt32[Array, "..."]:
    """32 bits for each element, by its place in the whole array.

    Rows (all axes but the last, flattened) and columns are hashed apart: most of the work is one mix.
    """
    if not shape:
        return mix(key)
    whole, starts = window or Window(shape, (0,) * len(shape))
    if len(starts) < len(shape):  # a run of the flattened array
        place = _iota(shape, 0, starts[0])
        columns = jnp.uint32(whole[-1] if whole else 1)
        row, column = place // columns, place % columns
        return mix(mix(key ^ row) + column * jnp.uint32(_COLUMN))
    last = len(shape) - 1
    row, stride = jnp.zeros((*shape[:-1], 1), jnp.uint32), 1
    for dim in reversed(range(last)):
        row = row + _iota((*shape[:-1], 1), dim, starts[dim]) * jnp.uint32(stride % 2**32)
        stride *= whole[dim]
    column = _iota(shape, last, starts[last])
    return mix(mix(key ^ row) + column * jnp.uint32(_COLUMN))


def uniform(bits: UInt32[Array, "..."]) -> Array:
    """Uniform float32 in [0, 1), from the upper 24 bits."""
    wide = (bits >> jnp.uint32(8)).astype(jnp.int32)  # of which chips make floats, of unsigned ones not all
    return wide.astype(jnp.float32) * jnp.float32(2.0**-24)


def _iota(shape: tuple[int, ...], dim: int, start: Any) -> UInt32[Array, "..."]:
    index = jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
    return index if isinstance(start, int) and start == 0 else index + jnp.asarray(start, jnp.uint32)
