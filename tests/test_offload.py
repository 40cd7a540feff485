"""State in host memory: the same bits, the right memory, and an order that works."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.placement._hosted import OffloadState

from .catalog import every_rule, like

P = PartitionSpec


def _params():
    r = np.random.default_rng(0)
    shapes = {"w": (16, 24), "blocks": {"up": (4, 8, 16), "b": (4, 8)}, "scale": ()}
    arrays = jax.tree.map(
        lambda s: jnp.asarray(r.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )
    return jax.device_put(arrays, NamedSharding(make_mesh((8,), ("data",)), P()))


def _run(rule, params, steps=3):
    shardings, found = jl.state_shardings(rule, params), []
    state = rule.init(params)
    if not isinstance(
        state, OffloadState
    ):  # some of optax's hold the parameters themselves: no donation then
        state = jax.tree.map(jnp.copy, jax.device_put(state, shardings))
    where = jax.tree.map(lambda p: p.sharding, params)
    step = jax.jit(rule.update, donate_argnums=1, out_shardings=(where, shardings))
    for seed in range(steps):
        grads = jax.tree.map(
            jax.device_put, like(params, seed), where
        )  # JAX donates by memory only if all is placed
        updates, state = jax.block_until_ready(step(grads, state, params))
        jax.tree.map(
            lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(s)), state, shardings
        )
        found.append(jax.tree.map(np.asarray, updates))
    assert step._cache_size() == 1
    return found, state


def _same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@every_rule
def test_the_same_bits(case):
    plain, _ = _run(case.rule(), _params())
    offloaded, state = _run(jl.offload(case.rule(), min_bytes=0), _params())
    _same(offloaded, plain)
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.memory_kind == ("pinned_host" if leaf.ndim else "device")


@pytest.mark.parametrize(
    "make", [lambda: optax.adamw(1e-2), lambda: optax.lion(1e-2), lambda: optax.adafactor(1e-2)]
)
def test_optax_rules_too(make):
    with jax.numpy_dtype_promotion("standard"):
        plain, _ = _run(make(), _params())
        _same(_run(jl.offload(make(), min_bytes=0), _params())[0], plain)


def test_clipping_and_guards_inside():
    def make():
        return jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-2)))

    plain, _ = _run(make(), _params())
    for got, want in zip(_run(jl.offload(make()), _params())[0], plain, strict=True):
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6), got, want)


def test_layer_by_layer():
    plain, _ = _run(jl.adamw(1e-2), _params())
    rule = jl.offload(jl.adamw(1e-2), layers="blocks*", min_bytes=0)
    got, state = _run(rule, _params())
    _same(got, plain)
    text = jax.jit(rule.update).lower(_params(), state, _params()).as_text()
    assert text.count("stablehlo.while") == 2  # one loop for each stacked parameter
    # a norm needs the whole leaf: it streams whole, and stays right
    rule = jl.offload(optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-2)), layers="blocks*", min_bytes=0)
    assert (
        "stablehlo.while"
        not in jax.jit(rule.update).lower(_params(), rule.init(_params()), _params()).as_text()
    )


def test_globs_choose():
    _, state = _run(jl.offload(jl.adam(1e-2), "*nu/*", min_bytes=64), _params())
    kinds = jax.tree.map(lambda x: x.sharding.memory_kind, state.inner[0])
    assert kinds.nu == {
        "w": "pinned_host",
        "blocks": {"up": "pinned_host", "b": "pinned_host"},
        "scale": "device",
    }
    assert set(jax.tree.leaves(kinds.mu)) == {"device"}


@pytest.mark.parametrize("names", [("data",), ("data", "model")], ids=str)
def test_around_zero(names):
    mesh = make_mesh((8,) if len(names) == 1 else (4, 2), names)
    params = jax.device_put(_params(), NamedSharding(mesh, P()))
    plain, _ = _run(jl.adamw(1e-2), _params())
    got, state = _run(jl.offload(jl.zero(jl.adamw(1e-2), mesh, "data", min_bytes=0), min_bytes=64), params)
    _same(got, plain)
    mu = state.inner.inner[0].mu["w"]
    assert mu.sharding.memory_kind == "pinned_host"
    assert mu.addressable_shards[0].data.size == 16 * 24 // mesh.shape["data"]


def test_a_rule_whose_parameters_share_state_still_works():
    """Prodigy's step size needs the state of every parameter."""
    with jax.numpy_dtype_promotion("standard"):
        plain, _ = _run(optax.contrib.prodigy(1.0), _params())
        got, _ = _run(jl.offload(optax.contrib.prodigy(1.0), min_bytes=0), _params())
    for g, w in zip(got, plain, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-12), g, w)


def test_errors(mesh8):
    with pytest.raises(ValueError, match=r"offload: the rule is inside zero. Write offload.zero.rule"):
        jl.zero(jl.offload(jl.adam(1e-2)), mesh8, "data").init(_params())
    with pytest.raises(
        ValueError, match=r"offload: only matches no leaf of the state, got 'nuu\*'; the nearest are"
    ):
        jl.offload(jl.adam(1e-2), "nuu*").init(_params())
    with pytest.raises(TypeError, match="offload: rule is not a rule, got 3"):
        inspect.unwrap(jl.offload)(3)
