"""Causal attention that never holds the scores of all positions with all others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK = 256  # queries whose scores are held at a time
_LEAST = 32  # shorter blocks cost more than they save
_FUSED = (jnp.bfloat16, jnp.float16)  # what cuDNN's kernel takes


def attention(
    q: Float[Array, "b t n s"], k: Float[Array, "b t m s"], v: Float[Array, "b t m s"]
) -> Float[Array, "b t n s"]:
    """Each query with the keys before it and its own; `n` heads of queries share `m` of keys and values.

    On GPU, in 16 bits, it is JAX's fused kernel (cuDNN's). Elsewhere a loop over blocks of queries, of which
    the backward pass computes the scores anew: memory grows with the length, not with its square.
    """
    if jax.default_backend() == "gpu" and q.dtype in _FUSED and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    length = q.shape[1]
    size = block_size(length)
    if size == length:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    @jax.checkpoint
    def block(n: Array) -> Array:
        some = jax.lax.dynamic_slice_in_dim(q, n * size, size, axis=1)
        at = n * size + jnp.arange(size)
        seen = at[:, None] >= jnp.arange(length)[None, :]
        return jax.nn.dot_product_attention(some, k, v, mask=seen[None, None])

    blocks = jax.lax.map(block, jnp.arange(length // size))  # [blocks, b, size, n, s]
    return jnp.moveaxis(blocks, 0, 1).reshape(q.shape)


def block_size(length: int) -> int:
    """Positions of a block: the most that divide the length; all of them where only few would."""
    if length <= _BLOCK:
        return length
    size = next(n for n in range(_BLOCK, 0, -1) if length % n == 0)
    return size if size >= _LEAST else length
