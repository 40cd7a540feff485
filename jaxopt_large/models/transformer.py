"""A decoder-only transformer: pre-norm, RMSNorm, rotary positions, squared ReLU or SwiGLU.

Layers are stacked along a leading axis and run under `lax.scan`, so that compile time does not grow
with depth. Sources: Vaswani et al. 2017 (arXiv:1706.03762), Zhang and Sennrich 2019
(arXiv:1910.07467), Su et al. 2021 (arXiv:2104.09864), So et al. 2021 (arXiv:2109.08668), Shazeer 2020
(arXiv:2002.05202) for SwiGLU, Ainslie et al. 2023 (arXiv:2305.13245) for grouped heads.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._errors import message
from .._types import Params
from ._attention import attention, blocks, pad
from ._model import Model
from ._place import ANYWHERE, Place

_NORM_EPS = 1e-6
_ROTARY_BASE = 10_000.0
_STACK = "layers"

Activation = Literal["relu_squared", "swiglu"]


def transformer(
    *,
    vocabulary: int,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int | None = None,
    mlp_width: int | None = None,
    activation: Activation = "relu_squared",
    rotary_base: float = _ROTARY_BASE,
    tied: bool = False,
    dtype: str = "float32",
    remat: bool | Literal["dots"] = False,
) -> Model:
    """A language model on sequences of integers.

    Args:
      vocabulary: number of tokens.
      layers: depth, the leading axis of every parameter under "layers".
      width: of the residual stream; divisible by twice the heads.
      heads: attention heads.
      kv_heads: heads of keys and values, each shared by as many of queries; as many as heads by default.
      mlp_width: of the hidden layer; four times the width by default.
      activation: of the hidden layer: squared ReLU, or SwiGLU with a gate beside it.
      rotary_base: of the rotary positions' wavelengths.
      tied: use the embedding as the output head.
      dtype: of activations and matrix products; parameters are float32.
      remat: recompute each layer in the backward pass, to save memory; "dots": all but matrix products.

    Returns:
      The model; its loss takes {"tokens": int[batch, length + 1]} and predicts each next token, or with
      "mask": bool[batch, length] those of the targets `tokens[:, 1:]` at which it is set.

    Raises:
      ValueError: the width is not divisible by twice the heads, or the heads not by kv_heads.
    """
    if width % (2 * heads) or heads % (kv_heads or heads):
        wrong = f"width {width}, heads {heads} and kv_heads {kv_heads} do not divide"
        allowed = "a width divisible by twice the heads, and heads by kv_heads"
        raise ValueError(message("transformer", wrong, allowed=allowed))
    hidden, kv_heads = mlp_width or 4 * width, kv_heads or heads
    size = width // heads

    def init(key: PRNGKeyArray) -> Params:
        into: dict[str, tuple[int, ...]] = {"qkv": (layers, width, 3, width)}
        if kv_heads != heads:
            into = {"kv": (layers, width, 2, kv_heads * size), "q": (layers, width, width)}
        gate = {"gate": (layers, width, hidden)} if activation == "swiglu" else {}
        shapes = {
            "embed": (vocabulary, width),
            _STACK: {
                "attn": {"norm": (layers, width), "out": (layers, width, width), **into},
                "mlp": {
                    "down": (layers, hidden, width),
                    "norm": (layers, width),
                    "up": (layers, width, hidden),
                    **gate,
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

    def layer(weights: Params, x: Array, angles: np.ndarray, place: Place) -> Array:
        def normed(x: Array, part: str) -> Array:
            return place.activation(_rms_norm(x, weights[part]["norm"]), "batch", None, None)

        def added(x: Array, y: Array) -> Array:  # positions are divided over devices that share a layer
            return place.activation(x + place.activation(y, "batch", "length", None), "batch", "length", None)

        x = added(x, _attention(normed(x, "attn"), weights["attn"], heads, kv_heads, angles, place))
        return added(x, _mlp(normed(x, "mlp"), weights["mlp"], place))

    def loss(params: Params, batch: dict[str, Array], place: Place = ANYWHERE) -> Float[Array, ""]:
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        wide = jnp.dtype(dtype)

        def used(x: Array, path: str) -> Array:
            """A layer of a parameter: matrices are sent in the dtype in which they are multiplied."""
            return place.weight(x.astype(wide) if x.ndim > 1 else x, path)

        # in float32, so that the gradient adds up what many positions give it; every row is looked up where
        # it is needed, some columns each
        table = place.activation(params["embed"], None, "hidden")
        x = place.activation(table[inputs].astype(wide), "batch", None, "hidden")
        x = place.activation(x, "batch", "length", None)
        angles = _rotary_angles(inputs.shape[1], size, rotary_base)

        def step(x: Array, weights: Params) -> tuple[Array, None]:
            named = {
                part: {name: used(w, f"{_STACK}/{part}/{name}") for name, w in some.items()}
                for part, some in weights.items()
            }
            return layer(named, x, angles, place), None

        x, _ = jax.lax.scan(_recomputed(step, remat), x, params[_STACK])
        x = place.activation(_rms_norm(x, params["norm"]), "batch", None, None)
        head = place.weight(params["embed"], "embed").T if tied else place.weight(params["head"], "head")
        return _mean_nats(x, head, targets, batch.get("mask"), place)

    return Model(init, loss)


def _recomputed(step: Callable[..., Any], remat: bool | Literal["dots"]) -> Callable[..., Any]:
    if not remat:
        return step
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
    return jax.checkpoint(step, policy=policy)


def _mean_nats(
    x: Float[Array, "b t d"],
    head: Float[Array, "d v"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None,
    place: Place,
) -> Float[Array, ""]:
    """Mean cross-entropy over the targets that count, 0 where none does.

    It is of blocks of positions: logits take more memory than all else of a layer.
    """

    def nats(x: Array, targets: Array) -> Array:
        # of a float32 head, whose gradient is a sum over all blocks
        logits = jnp.einsum("btd,dv->btv", x, head.astype(x.dtype)).astype(jnp.float32)
        logits = place.activation(logits, "batch", None, "vocabulary")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - chosen

    length = x.shape[1]
    count, size = blocks(length)
    number = targets.size if mask is None else jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0)
    if count == 1 and mask is None:
        return jnp.mean(nats(x, targets))
    if count == 1:
        return jnp.sum(jnp.where(jnp.asarray(mask), nats(x, targets), 0.0)) / number
    masks = [] if mask is None else [mask]
    padded = [pad(a, count * size) for a in (x, targets, *masks)]

    @jax.checkpoint
    def total(n: Array) -> Array:
        inputs, labels, *counts = (jax.lax.dynamic_slice_in_dim(a, n * size, size, axis=1) for a in padded)
        some = nats(inputs, labels)
        is_there = n * size + jnp.arange(size) < length
        return jnp.sum(jnp.where(counts[0] if counts else is_there[None, :], some, 0.0))

    return jnp.sum(jax.lax.map(total, jnp.arange(count))) / number


def _initial(key: PRNGKeyArray, name: str, shape: tuple[int, ...], layers: int) -> Array:
    """Ones for norms; else normal with variance 1/fan-in, smaller where it adds to the residual."""
    if name == "norm":
        return jnp.ones(shape, jnp.float32)
    fan_in = shape[-1] if name == "embed" else shape[0] if name == "head" else shape[1]
    scale = 1 / math.sqrt(fan_in)
    if name in ("out", "down"):
        scale /= math.sqrt(2 * layers)
    return scale * jax.random.normal(key, shape, jnp.float32)


def _rms_norm(x: Float[Array, "b t d"], gain: Float[Array, " d"]) -> Float[Array, "b t d"]:
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + _NORM_EPS)
    return (wide * scale * gain[None, None, :]).astype(x.dtype)


def _attention(
    x: Float[Array, "b t d"],
    weights: Params,
    heads: int,
    kv_heads: int,
    angles: Float[np.ndarray, "t h"],
    place: Place,
) -> Float[Array, "b t d"]:
    b, t, d = x.shape

    def by_heads(x: Array, heads: int) -> Array:
        return place.activation(x.reshape(b, t, heads, -1), "batch", None, "heads", None)

    if "qkv" in weights:
        q, k, v = (
            by_heads(y, heads) for y in jnp.moveaxis(jnp.einsum("btd,dce->btce", x, weights["qkv"]), 2, 0)
        )
    else:
        q = by_heads(jnp.einsum("btd,de->bte", x, weights["q"]), heads)
        k, v = (
            by_heads(y, kv_heads) for y in jnp.moveaxis(jnp.einsum("btd,dce->btce", x, weights["kv"]), 2, 0)
        )
    mixed = attention(_rotate(q, angles), _rotate(k, angles), v, fused=place.fused).reshape(b, t, d)
    mixed = place.activation(mixed, "batch", None, "hidden")
    return jnp.einsum("btd,de->bte", mixed, weights["out"])


def _mlp(x: Float[Array, "b t d"], weights: Params, place: Place) -> Float[Array, "b t d"]:
    up = place.activation(jnp.einsum("btd,dh->bth", x, weights["up"]), "batch", None, "hidden")
    if "gate" in weights:
        gate = place.activation(jnp.einsum("btd,dh->bth", x, weights["gate"]), "batch", None, "hidden")
        h = jax.nn.silu(gate) * up
    else:
        h = jnp.square(jax.nn.relu(up))
    return jnp.einsum("bth,hd->btd", h, weights["down"])


def _rotary_angles(length: int, size: int, base: float) -> Float[np.ndarray, "t h"]:
    frequencies = base ** (-np.arange(0, size, 2) / size)
    return np.outer(np.arange(length), frequencies).astype(np.float32)


def _rotate(x: Float[Array, "b t n s"], angles: Float[np.ndarray, "t h"]) -> Float[Array, "b t n s"]:
    """Turns the pairs (i, i + s/2) of each head by angles that grow with the position."""
    cos = jnp.cos(angles)[None, :, None, :].astype(x.dtype)
    sin = jnp.sin(angles)[None, :, None, :].astype(x.dtype)
    one, two = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([one * cos - two * sin, one * sin + two * cos], axis=-1)
