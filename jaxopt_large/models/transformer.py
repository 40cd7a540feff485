"""A decoder-only transformer: pre-norm, RMSNorm, rotary positions, squared ReLU.

Layers are stacked along a leading axis and run under `lax.scan`, so that compile time does not grow
with depth. Sources: Vaswani et al. 2017 (arXiv:1706.03762), Zhang and Sennrich 2019
(arXiv:1910.07467), Su et al. 2021 (arXiv:2104.09864), So et al. 2021 (arXiv:2109.08668).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._types import Params
from ._model import Model

_NORM_EPS = 1e-6
_ROTARY_BASE = 10_000.0


def transformer(
    *,
    vocabulary: int,
    layers: int,
    width: int,
    heads: int,
    mlp_width: int | None = None,
    tied: bool = False,
    dtype: str = "float32",
    remat: bool = False,
) -> Model:
    """A language model on sequences of integers.

    Args:
      vocabulary: number of tokens.
      layers: depth, the leading axis of every parameter under "layers".
      width: of the residual stream; divisible by twice the heads.
      heads: attention heads.
      mlp_width: of the hidden layer; four times the width by default.
      tied: use the embedding as the output head.
      dtype: of activations and matrix products; parameters are float32.
      remat: recompute each layer in the backward pass, to save memory.

    Returns:
      The model; its loss takes {"tokens": int[batch, length + 1]} and predicts each next token.
    """
    hidden = mlp_width or 4 * width

    def init(key: PRNGKeyArray) -> Params:
        shapes = {
            "embed": (vocabulary, width),
            "layers": {
                "attn": {
                    "norm": (layers, width),
                    "out": (layers, width, width),
                    "qkv": (layers, width, 3 * width),
                },
                "mlp": {
                    "down": (layers, hidden, width),
                    "norm": (layers, width),
                    "up": (layers, width, hidden),
                },
            },
            "norm": (width,),
        }
        if not tied:
            shapes["head"] = (width, vocabulary)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
        keys = jax.random.split(key, len(leaves))
        return treedef.unflatten(
            [_initial(k, path[-1].key, shape, layers) for k, (path, shape) in zip(keys, leaves, strict=True)]
        )

    def loss(params: Params, batch: dict[str, Array]) -> Float[Array, ""]:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits = _logits(params, inputs, heads, jnp.dtype(dtype), remat)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    return Model(init, loss)


def _initial(key: PRNGKeyArray, name: str, shape: tuple[int, ...], layers: int) -> Array:
    """Ones for norms; else normal with variance 1/fan-in, smaller where it adds to the residual."""
    if name == "norm":
        return jnp.ones(shape, jnp.float32)
    fan_in = shape[-1] if name == "embed" else shape[-2]
    scale = 1 / math.sqrt(fan_in)
    if name in ("out", "down"):
        scale /= math.sqrt(2 * layers)
    return scale * jax.random.normal(key, shape, jnp.float32)


def _logits(
    params: Params, tokens: Int[Array, "b t"], heads: int, dtype: Any, remat: bool
) -> Float[Array, "b t v"]:
    x = params["embed"][tokens].astype(dtype)
    angles = _rotary_angles(tokens.shape[1], x.shape[-1] // heads)

    def layer(x: Array, weights: Params) -> tuple[Array, None]:
        x = x + _attention(_rms_norm(x, weights["attn"]["norm"]), weights["attn"], heads, angles)
        return x + _mlp(_rms_norm(x, weights["mlp"]["norm"]), weights["mlp"]), None

    x, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, params["layers"])
    head = params["head"] if "head" in params else params["embed"].T
    return jnp.einsum("btd,dv->btv", _rms_norm(x, params["norm"]), head.astype(dtype)).astype(jnp.float32)


def _rms_norm(x: Float[Array, "b t d"], gain: Float[Array, " d"]) -> Float[Array, "b t d"]:
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + _NORM_EPS)
    return (wide * scale * gain[None, None, :]).astype(x.dtype)


def _attention(
    x: Float[Array, "b t d"], weights: Params, heads: int, angles: Float[np.ndarray, "t h"]
) -> Float[Array, "b t d"]:
    b, t, d = x.shape
    qkv = jnp.einsum("btd,de->bte", x, weights["qkv"].astype(x.dtype)).reshape(b, t, 3, heads, d // heads)
    q, k, v = _rotate(qkv[:, :, 0], angles), _rotate(qkv[:, :, 1], angles), qkv[:, :, 2]
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return jnp.einsum("btd,de->bte", mixed.reshape(b, t, d), weights["out"].astype(x.dtype))


def _mlp(x: Float[Array, "b t d"], weights: Params) -> Float[Array, "b t d"]:
    h = jnp.square(jax.nn.relu(jnp.einsum("btd,dh->bth", x, weights["up"].astype(x.dtype))))
    return jnp.einsum("bth,hd->btd", h, weights["down"].astype(x.dtype))


def _rotary_angles(length: int, size: int) -> Float[np.ndarray, "t h"]:
    frequencies = _ROTARY_BASE ** (-np.arange(0, size, 2) / size)
    return np.outer(np.arange(length), frequencies).astype(np.float32)


def _rotate(x: Float[Array, "b t n s"], angles: Float[np.ndarray, "t h"]) -> Float[Array, "b t n s"]:
    """Turns the pairs (i, i + s/2) of each head by angles that grow with the position."""
    cos = jnp.cos(angles)[None, :, None, :].astype(x.dtype)
    sin = jnp.sin(angles)[None, :, None, :].astype(x.dtype)
    one, two = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, one * sin + two * cos], axis=-1)
