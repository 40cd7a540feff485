"""Blocks of the last axis: their view, their maxima, and what is constant on each of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._encoded import BLOCK, blocks_of

_LANES = 8  # of a CPU's vector


def to_blocks(x: Array) -> Array:
    """[..., n] -> [..., blocks, width], zero-padded; a last axis up to `BLOCK` is one block as it is.

    Chips keep the last two axes in tiles: one block with an axis of its own would fill an eighth of them.
    """
    length = x.shape[-1]
    if length <= BLOCK:
        return x
    padding = blocks_of(length) * BLOCK - length
    if padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def from_blocks(x: Array, length: int) -> Array:
    """The inverse of `to_blocks`."""
    if length <= BLOCK:
        return x
    x = x.reshape(*x.shape[:-2], -1)
    return x if x.shape[-1] == length else jax.lax.slice_in_dim(x, 0, length, axis=x.ndim - 1)


def over_blocks(scale: Array, view: Array) -> Array:
    """[..., blocks], as it multiplies what `to_blocks` gives."""
    return scale if scale.ndim == view.ndim else scale[..., None]


def block_max(x: Array, *, keepdims: bool) -> Array:
    """The maximum over the last axis, NaN if there is one, of values that are computed on the way.

    Halves of a block first, whose lanes lie side by side, then a reduction over the last few: fused with
    what makes the values, XLA's reduction over a short last axis is scalar code on CPU, and a tree to its
    end would be computed again for every element that its result scales.
    """
    width = x.shape[-1]
    while width > _LANES and width % 2 == 0:
        width //= 2
        x = jnp.maximum(x[..., :width], x[..., width:])
    return jnp.max(x, axis=-1, keepdims=keepdims)
