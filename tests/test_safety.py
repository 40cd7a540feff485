import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

from .catalog import RULES, bits_of, in_turn, like, mixed_params


def _bits(tree):
    return [bits_of(x) for x in jax.tree.leaves(tree)]


@pytest.mark.compat
def test_the_norm_is_float32_whatever_the_leaves_are():
    """In low precision optax gets 512, and an infinite norm."""
    params = [jnp.ones(640, jnp.bfloat16) for _ in range(1000)]
    assert float(jl.global_norm(params)) == pytest.approx(800.0, rel=1e-6)
    fp16 = {"w": jnp.full((100,), 300.0, jnp.float16)}
    assert float(jl.global_norm(fp16)) == pytest.approx(3000.0, rel=1e-6)
    clipped, _ = jl.clip_by_global_norm(1.0).update(fp16, optax.EmptyState())
    np.testing.assert_allclose(np.asarray(clipped["w"], np.float32), 0.1, rtol=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1.0, 1e19, 1e20, 1e36])
def test_the_norm_neither_overflows_nor_divides_by_zero(size):
    grads = {"a": jnp.full((50,), size), "b": jnp.full((50,), size)}
    updates, _ = jl.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    norm = np.linalg.norm(np.concatenate([np.asarray(u, np.float64) for u in updates.values()]))
    assert norm == pytest.approx(min(1.0, 10 * size), rel=1e-5, abs=1e-18)


def test_the_norm_of_many_elements_does_not_stall():
    """A running float32 sum of ones stops at 2^24."""
    assert float(jl.global_norm(jnp.ones((2**13, 2**13)))) == pytest.approx(2.0**13, rel=1e-5)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("size", [1e-3, 1e25])
def test_the_norm_of_many_leaves_is_that_of_their_elements(devices, size, monkeypatch):
    """On one CPU device leaves of one shape are added before their elements are."""
    monkeypatch.setattr(jax, "device_count", lambda *_: devices)
    shapes = [(5, 3), (7,), (5, 3), (), (0, 2)] * 20
    leaves = [
        size * jax.random.normal(jax.random.key(n), shape).astype(dtype)
        for n, (shape, dtype) in enumerate(zip(shapes, ["float32", "bfloat16"] * 50, strict=True))
    ]
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
    norm = jax.jit(lambda xs: jl.global_norm(xs))
    assert float(norm(leaves)) == pytest.approx(np.linalg.norm(flat), rel=1e-5)
    lowered = norm.lower(leaves).as_text()
    assert (lowered.count("stablehlo.reduce(") < 20) == (devices == 1)


def test_the_norm_in_a_mapped_axis_of_one_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    leaves = [jnp.ones((1, 3)), jnp.ones((1, 5)), jnp.ones((1, 3))]
    norms = jax.pmap(lambda xs: jl.global_norm(xs, "i"), axis_name="i")(leaves)
    assert float(norms[0]) == pytest.approx(11**0.5)


def test_the_norm_on_one_device_of_leaves_that_are_typed_as_sharded(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    spec = jax.sharding.PartitionSpec
    mesh = jax.make_mesh((1, 1), ("d", "t"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        placed = [jax.sharding.NamedSharding(mesh, s) for s in (spec("d", "t"), spec("t", "d"), spec())]
        leaves = [jax.device_put(jnp.ones((4, 4)), s) for s in placed * 2]
        assert float(jax.jit(lambda xs: jl.global_norm(xs))(leaves)) == pytest.approx(96**0.5)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_the_norm_of_one_large_element_is_right_under_jit(shape):
    """XLA takes the scale of one element out of its square, where it is 0."""
    grads = [jnp.full(shape, 1e25), jnp.full((), 1e25, jnp.bfloat16)]
    assert float(jax.jit(jl.global_norm)(grads)) == pytest.approx(2**0.5 * 1e25, rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_never_hides_a_broken_gradient(bad):
    grads = {"a": jnp.array([1.0, bad]), "b": jnp.ones(3)}
    updates, _ = jl.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert all(bool(jnp.all(jnp.isnan(u))) for u in updates.values())


def test_clipping_equals_optax_where_optax_is_right():
    for scale in (0.01, 1.0, 100.0):
        grads = like(mixed_params(), 0, scale)
        ours, _ = jl.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        with jax.numpy_dtype_promotion("standard"):
            theirs, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def test_clipping_in_a_mapped_axis_counts_the_whole_leaf():
    grads = jnp.arange(1.0, 9.0)  # one element a device
    rule = jl.clip_by_global_norm(1.0, axis_name="i")
    clipped = jax.pmap(lambda g: rule.update(g, optax.EmptyState())[0], axis_name="i")(grads)
    np.testing.assert_allclose(clipped, grads / np.linalg.norm(np.arange(1.0, 9.0)), rtol=1e-6)


def test_zero_tells_clipping_about_its_axis():
    """No axis_name on the clipping: zero announces it; given as well, it is not counted twice."""
    grads = jnp.tile(jnp.arange(1.0, 17.0)[None], (8, 1))
    expected = -np.arange(1.0, 17.0) / np.linalg.norm(np.arange(1.0, 17.0))
    for axis_name in (None, "i"):
        inner = optax.chain(jl.clip_by_global_norm(1.0, axis_name), jl.gradient_descent(1.0))
        rule = jl.zero(inner, axis_name="i")
        state = jax.pmap(rule.init, axis_name="i")(grads)
        updates, _ = jax.pmap(rule.update, axis_name="i")(grads, state)
        np.testing.assert_allclose(np.asarray(updates)[3], expected, rtol=1e-6)


@pytest.mark.compat
@in_turn("case", RULES, "bad", [np.nan, np.inf, -np.inf])
def test_a_skipped_step_leaves_every_bit(case, bad):
    params = mixed_params()
    params["dense"]["bias"] = params["dense"]["bias"].at[0].set(-0.0)
    rule = jl.skip_nonfinite(case.scheduled(lambda count: 0.01))
    state = rule.init(params)
    updates, state = rule.update(like(params, 0), state, params)
    params = optax.apply_updates(params, updates)
    params["dense"]["bias"] = params["dense"]["bias"].at[1].set(-0.0)
    broken = like(params, 1)
    broken["odd"] = broken["odd"].at[0, 0].set(bad)
    updates, skipped = jax.jit(rule.update)(broken, state, params)
    assert _bits(optax.apply_updates(params, updates)) == _bits(params)
    assert _bits(skipped.inner) == _bits(state.inner)
    assert int(skipped.skipped) == int(state.skipped) + 1
    _, after = rule.update(like(params, 2), skipped, params)
    _, without = rule.update(like(params, 2), state, params)
    assert _bits(after.inner) == _bits(without.inner)


def test_all_devices_skip_alike():
    """One device alone sees the NaN; without the axis its state would part from the others'."""
    rule = jl.skip_nonfinite(jl.sgd(1.0, momentum=0.9), axis_name="i")
    grads = jnp.ones((8, 4)).at[5, 2].set(jnp.nan)
    state = jax.pmap(rule.init, axis_name="i")(jnp.ones((8, 4)))
    updates, state = jax.pmap(rule.update, axis_name="i")(grads, state)
    assert np.asarray(state.skipped).tolist() == [1] * 8
    assert not np.any(np.asarray(updates))


@pytest.mark.parametrize("outside", [True, False])
def test_skipping_around_and_inside_mapped_zero(outside):
    guard = jl.skip_nonfinite
    rule = (
        guard(jl.zero(jl.adam(1.0), axis_name="i"), axis_name="i")
        if outside
        else jl.zero(guard(jl.adam(1.0)), axis_name="i")
    )
    params = jnp.ones((8, 5))
    state = jax.pmap(rule.init, axis_name="i")(params)
    grads = params.at[3, 1].set(jnp.inf)
    updates, state = jax.pmap(rule.update, axis_name="i")(grads, state)
    assert not np.any(np.asarray(updates))
    skipped = state.skipped if outside else state.inner.skipped
    assert np.asarray(skipped).tolist() == [1] * 8
