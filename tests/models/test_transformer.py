"""The decoder beside its equations in NumPy, and in blocks beside all at once."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_large.models import _attention
from jaxopt_large.models._place import ANYWHERE
from jaxopt_large.models.transformer import transformer

_SHAPE = {"vocabulary": 40, "layers": 2, "width": 32, "heads": 4}


def _tokens(length, rows=2):
    return {"tokens": jax.random.randint(jax.random.key(1), (rows, length + 1), 0, 40)}


def _numpy_loss(params, tokens, *, heads, base=1e4):
    """The loss in float64, a head and a position at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    inputs, targets = np.asarray(tokens)[:, :-1], np.asarray(tokens)[:, 1:]
    b, t = inputs.shape
    d = p["embed"].shape[1]
    size = d // heads

    def normed(x, gain):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * gain

    angles = np.outer(np.arange(t), base ** (-np.arange(0, size, 2) / size))

    def turned(x):  # [t, size]
        one, two = x[:, : size // 2], x[:, size // 2 :]
        return np.concatenate(
            [one * np.cos(angles) - two * np.sin(angles), one * np.sin(angles) + two * np.cos(angles)], 1
        )

    x = p["embed"][inputs]
    for n in range(p["layers"]["attn"]["norm"].shape[0]):
        attn = {k: v[n] for k, v in p["layers"]["attn"].items()}
        mlp = {k: v[n] for k, v in p["layers"]["mlp"].items()}
        h, mixed = normed(x, attn["norm"]), np.zeros_like(x)
        if "qkv" in attn:
            q, k, v = (h @ attn["qkv"][:, c] for c in range(3))
        else:
            q, (k, v) = h @ attn["q"], (h @ attn["kv"][:, c] for c in range(2))
        shared = q.shape[-1] // k.shape[-1]
        for row in range(b):
            for head in range(heads):
                own, theirs = (slice(i * size, (i + 1) * size) for i in (head, head // shared))
                scores = turned(q[row, :, own]) @ turned(k[row, :, theirs]).T / np.sqrt(size)
                scores[np.triu_indices(t, 1)] = -np.inf
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                mixed[row, :, own] = weights / weights.sum(-1, keepdims=True) @ v[row, :, theirs]
        x = x + mixed @ attn["out"]
        h = normed(x, mlp["norm"])
        up = h @ mlp["up"]
        gate = h @ mlp["gate"] if "gate" in mlp else None
        x = x + (np.maximum(up, 0) ** 2 if gate is None else gate / (1 + np.exp(-gate)) * up) @ mlp["down"]
    logits = normed(x, p["norm"]) @ (p["head"] if "head" in p else p["embed"].T)
    most = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - most).sum(-1)) + most[..., 0]
    return np.mean(total - np.take_along_axis(logits, targets[..., None], -1)[..., 0])


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        ({}, {}),
        ({"tied": True, "mlp_width": 24}, {}),
        ({"kv_heads": 2, "activation": "swiglu", "mlp_width": 24}, {}),
        ({"kv_heads": 1, "rotary_base": 5e5}, {"base": 5e5}),
    ],
)
def test_the_loss_is_that_of_its_equations(settings, oracle):
    model = transformer(**_SHAPE, **settings)
    params, batch = model.init(jax.random.key(0)), _tokens(12)
    expected = _numpy_loss(params, batch["tokens"], heads=4, **oracle)
    np.testing.assert_allclose(jax.jit(model.loss)(params, batch), expected, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("remat", "length"), [(False, 128), (True, 101), ("dots", 128)])
def test_in_blocks_as_all_at_once(kv_heads, remat, length, monkeypatch):
    """Attention and the loss; values and gradients."""
    model = transformer(**_SHAPE, kv_heads=kv_heads, remat=remat)
    params, batch = model.init(jax.random.key(0)), _tokens(length)

    def made():
        return jax.jit(jax.value_and_grad(lambda p, b: model.loss(p, b)))(params, batch)

    whole = made()
    monkeypatch.setattr(_attention, "_BLOCK", 32)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), made(), whole)


def test_memory_grows_with_the_length():
    """Not with its square, as scores of all positions would."""
    model = transformer(**_SHAPE, remat=True)

    def temporaries(length):
        batch = {"tokens": jax.ShapeDtypeStruct((1, length + 1), jnp.int32)}
        compiled = jax.jit(jax.grad(model.loss)).lower(model.abstract(), batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4099) < 2.3 * temporaries(2048)


@pytest.mark.parametrize("length", [1, 128, 256, 257, 300, 512, 1021, 2048])
def test_blocks_cover_all_positions(length):
    count, size = _attention.blocks(length)
    assert size <= 256
    assert length <= count * size < length + count


@pytest.mark.parametrize("settings", [{"heads": 5}, {"kv_heads": 3}])
def test_heads_that_do_not_divide(settings):
    with pytest.raises(ValueError, match=r"transformer: width 32, heads . and kv_heads .* do not divide"):
        transformer(**{**_SHAPE, **settings})


class _Fused(type(ANYWHERE)):
    fused = True


def _text(dtype, **lowering):
    """The gradient of a loss whose place has fused attention."""
    model = transformer(vocabulary=40, layers=2, width=128, heads=4, kv_heads=2, dtype=dtype, remat=True)
    batch = {"tokens": jax.ShapeDtypeStruct((2, 513), jnp.int32)}
    run = jax.jit(jax.grad(lambda params, batch: model.loss(params, batch, _Fused())))
    return run.trace(model.abstract(), batch).lower(**lowering).as_text()


def test_attention_is_cudnns_kernel_where_there_is_one(monkeypatch):
    """As far as a machine without a GPU can tell: the program for one calls it, forward and backward."""
    fused_attention = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention, "cuda_versions", versions, raising=False)
    text = _text("bfloat16", lowering_platforms=("cuda",))
    assert "fmhaSoftmax" in text
    assert "fmhaSoftmaxBackward" in text
    assert "fmha" not in _text("float32", lowering_platforms=("cuda",))  # in 16 bits only


def test_attention_is_in_blocks_where_there_is_none():
    with jax.numpy_dtype_promotion("standard"):  # JAX's own derivative of attention in bfloat16 asks for it
        assert "fmha" not in _text("bfloat16")
