"""Causal attention that never holds the scores of all positions with all others."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK = 256  # positions at a time


def attention(
    q: Float[Array, "b t n s"],
    k: Float[Array, "b t m s"],
    v: Float[Array, "b t m s"],
    *,
    fused: bool = False,
) -> Float[Array, "b t n s"]:
    """Each query with the keys before it and its own; `n` heads of queries share `m` of keys and values.

    A loop over blocks of queries, of which the backward pass computes the scores anew: memory grows with the
    length, not with its square. With `fused`, cuDNN's kernel where it takes the arrays: in 16 bits, on GPUs
    that have it.
    """
    if fused and q.dtype.itemsize == 2:
        try:
            return _attended(q, k, v, is_causal=True, implementation="cudnn")
        except (NotImplementedError, RuntimeError, ValueError):  # JAX asks cuDNN and the device as it traces
            pass
    length = q.shape[1]
    count, size = blocks(length)
    if count == 1:
        return _attended(q, k, v, is_causal=True)
    padded = pad(q, count * size)

    @jax.checkpoint
    def block(n: Array) -> Array:
        some = jax.lax.dynamic_slice_in_dim(padded, n * size, size, axis=1)
        at = n * size + jnp.arange(size)
        seen = at[:, None] >= jnp.arange(length)[None, :]
        return _attended(some, k, v, mask=seen[None, None])

    made = jax.lax.map(block, jnp.arange(count))  # [blocks, b, size, n, s]
    return jnp.moveaxis(made, 0, 1).reshape(padded.shape)[:, :length]


def _attended(q: Array, k: Array, v: Array, **options: Any) -> Array:
    with jax.numpy_dtype_promotion("standard"):  # JAX's own function asks for it, in bfloat16
        return jax.nn.dot_product_attention(q, k, v, **options)


def blocks(length: int) -> tuple[int, int]:
    """How many blocks of positions, and how long each is; the last may reach over the end.

    >>> blocks(128), blocks(512), blocks(1021)
    ((1, 128), (2, 256), (4, 256))
    """
    count = max(1, math.ceil(length / _BLOCK))
    return count, math.ceil(length / count)


def pad(x: Array, length: int) -> Array:
    """[b, t, ...] -> [b, length, ...], with zeros."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))
