"""State in host memory: the same bits, the right memory, and an order that works."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.placement._offload_state import OffloadState

from .catalog import every_kind, like

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
    explicit = any(AxisType.Explicit in s.mesh.axis_types for s in jax.tree.leaves(where))
    has_key = any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
    assert (
        step._cache_size() == 1 or explicit or has_key
    )  # there P() and P(None) are two entries of one compilation
    return found, state


def _same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


@every_kind
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


def _guarded():
    return jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-2)))


@pytest.mark.parametrize("layers", [None, "blocks*"])
def test_clipping_and_guards_stream_inside(layers):
    plain, _ = _run(_guarded(), _params())
    rule = jl.offload(_guarded(), layers=layers, min_bytes=0)
    found, state = _run(rule, _params())
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state) if x.ndim} == {"pinned_host"}
    for got, want in zip(found, plain, strict=True):
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6), got, want)
    way = "layer by layer" if layers else "with its parameter"
    rows = {row.path: row.reason for row in jl.explain(rule, _params())}
    assert rows["blocks/up"].endswith(f"streamed {way}"), rows


def test_layer_by_layer():
    plain, _ = _run(jl.adamw(1e-2), _params())
    rule = jl.offload(jl.adamw(1e-2), layers="blocks*", min_bytes=0)
    got, state = _run(rule, _params())
    _same(got, plain)
    text = jax.jit(rule.update).lower(_params(), state, _params()).as_text()
    assert text.count("stablehlo.while") == 2  # one loop for each stacked parameter


def _scaled(function):
    """Adam, and then something that a loop over layers must not get wrong."""
    scale = optax.stateless(lambda updates, _: jax.tree.map(function, updates))
    return optax.chain(jl.adam(1e-2), scale)


class _ColumnState(NamedTuple):
    mu: Any
    column: Any


def _with_column_state():
    def init(params):
        columns = jax.tree.map(lambda p: jnp.arange(1.0, p.shape[-1] + 1) if p.ndim else p, params)
        return _ColumnState(jax.tree.map(jnp.zeros_like, params), columns)

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda m, g: 0.9 * m + g, state.mu, updates)
        spread = jax.tree.map(lambda m, c: m * jnp.broadcast_to(c, m.shape), mu, state.column)
        return spread, _ColumnState(mu, state.column)

    return optax.GradientTransformation(init, update)


_MULTIPLIERS = np.array([1.0, 10.0, 100.0, 1000.0], np.float32)
_TRICKY = {
    "a rate for each layer": lambda: _scaled(
        lambda u: u * _MULTIPLIERS.reshape(4, *(1,) * (u.ndim - 1)) if u.ndim and u.shape[0] == 4 else u
    ),
    "divided by the size": lambda: _scaled(lambda u: u / u.size),
    "by the number of layers": lambda: _scaled(lambda u: u * u.shape[0] ** 0.5 if u.ndim else u),
    "by its own norm": lambda: _scaled(lambda u: u / (1.0 + jnp.linalg.norm(u.reshape(-1)))),
    "state of columns": _with_column_state,
}


@pytest.mark.parametrize("name", _TRICKY)
def test_what_depends_on_more_than_a_layer_is_not_got_wrong(name):
    with jax.numpy_rank_promotion("allow"):
        plain, _ = _run(_TRICKY[name](), _params())
        got, _ = _run(jl.offload(_TRICKY[name](), layers="blocks*", min_bytes=0), _params())
    for g, w in zip(got, plain, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), g, w)


def test_layers_of_what_zero_has_flattened_stream_whole(mesh8):
    params = jax.device_put({"w": jnp.ones((4, 6, 12))}, NamedSharding(mesh8, P()))
    plain, _ = _run(jl.adamw(1e-2), params)
    got, _ = _run(
        jl.offload(jl.zero(jl.adamw(1e-2), mesh8, "data", min_bytes=0), layers="*", min_bytes=0), params
    )
    _same(got, plain)


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data")], ids=str)
@pytest.mark.parametrize("layers", [None, "*"])
def test_explicit_axes(spec, layers):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    params = jax.device_put({"w": jnp.ones((8, 16, 32))}, NamedSharding(mesh, spec))
    plain, _ = _run(jl.adamw(1e-2), params)
    got, _ = _run(jl.offload(jl.adamw(1e-2), layers=layers, min_bytes=0), params)
    _same(got, plain)


def test_explain_says_what_does_not_stream():
    rule = jl.offload(jl.accumulate(jl.adamw(1e-2), 2), min_bytes=0)
    rows = {row.path: row.reason for row in jl.explain(rule, _params())}
    assert "more leaves in host memory: they do not stream" in rows["w"]


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


def _stored(rule):
    return jl.stored(rule, mu=jl.int8(), nu=jl.int8())


@pytest.mark.parametrize("shape", [(4, 40, 384), (8192,)], ids=str)
@pytest.mark.parametrize("placed", [True, False])
def test_what_is_stored_in_blocks_streams_whole(shape, placed):
    """Layer by layer codecs would be rounded otherwise, in the last bit."""
    rule, kept = jl.offload(_stored(jl.adam(1e-2)), layers="*", min_bytes=0), _stored(jl.adam(1e-2))
    params = jax.device_put({"w": jnp.ones(shape)}, jax.devices()[0])
    assert any(
        "streamed whole: its update is not elementwise" in row.reason for row in jl.explain(rule, params)
    )
    found = []
    for one in (rule, kept):
        state = one.init(params)
        where = jax.tree.map(lambda p: p.sharding, params), jl.state_shardings(one, params)
        step = jax.jit(one.update, **({"out_shardings": where} if placed else {}))
        for seed in range(3):
            updates, state = step(like(params, seed), state, params)
        found.append((updates, jax.tree.map(np.asarray, jax.tree.leaves(state))))
    _same(*found)


def test_errors(mesh8):
    with pytest.raises(ValueError, match=r"offload: the rule is inside zero. Write offload.zero.rule"):
        jl.zero(jl.offload(jl.adam(1e-2)), mesh8, "data").init(_params())
    with pytest.raises(
        ValueError, match=r"offload: only matches no leaf of the state, got 'nuu\*'; the nearest are"
    ):
        jl.offload(jl.adam(1e-2), "nuu*").init(_params())
    with pytest.raises(
        ValueError, match=r"offload: layers matches no parameter, got 'block/\*'; the nearest"
    ):
        jl.offload(jl.adam(1e-2), layers="block/*").init(_params())
    with pytest.raises(TypeError, match="offload: rule is not a rule, got 3"):
        inspect.unwrap(jl.offload)(3)
