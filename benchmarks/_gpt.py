"""A small decoder as GPT-2 has it: learned positions, LayerNorm, GELU, separate head."""

import math

import jax
import jax.numpy as jnp


def gpt(*, width, layers, heads, context, vocabulary=256):
    """(init, loss): of keys, and of parameters and tokens [batch, context + 1]."""
    shapes = {
        "embed": (vocabulary, width),
        "positions": (context, width),
        "layers": {
            "attn": {
                "norm": (layers, width),
                "qkv": (layers, width, 3 * width),
                "out": (layers, width, width),
            },
            "mlp": {
                "norm": (layers, width),
                "up": (layers, width, 4 * width),
                "down": (layers, 4 * width, width),
            },
        },
        "norm": (width,),
        "head": (width, vocabulary),
    }

    def init(key):
        leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes, is_leaf=lambda x: isinstance(x, tuple))
        keys = jax.random.split(key, len(leaves))
        return treedef.unflatten(
            [_first(k, path[-1].key, shape, layers) for k, (path, shape) in zip(keys, leaves, strict=True)]
        )

    def loss(params, tokens):
        x = params["embed"][tokens[:, :-1]] + params["positions"][None]

        def layer(x, w):
            x = x + _attention(_norm(x, w["attn"]["norm"]), w["attn"], heads)
            hidden = jax.nn.gelu(_norm(x, w["mlp"]["norm"]) @ w["mlp"]["up"])
            return x + hidden @ w["mlp"]["down"], None

        x, _ = jax.lax.scan(layer, x, params["layers"])
        logits = _norm(x, params["norm"]) @ params["head"]
        chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)

    return init, loss


def _first(key, name, shape, layers):
    if name == "norm":
        return jnp.ones(shape)
    deviation = 0.02
    if name in ("out", "down"):  # what adds to the residual stream
        deviation /= math.sqrt(2 * layers)
    return deviation * jax.random.normal(key, shape)


def _norm(x, gain):
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * gain


def _attention(x, w, heads):
    b, t, d = x.shape
    qkv = (x @ w["qkv"]).reshape(b, t, 3, heads, d // heads)
    mixed = jax.nn.dot_product_attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=True)
    return mixed.reshape(b, t, d) @ w["out"]
