"""bfloat16 parameters: every value, every residual, and steps that rounding would lose."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

FORMATS = [pytest.param(jl.rounded, id="rounded"), pytest.param(jl.split, id="split")]


@pytest.fixture
def as_optax_adds():
    """`optax.apply_updates` adds float32 to bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _all_bfloat16():
    return jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)


def test_every_value_with_every_residual_comes_back():
    p, format = _all_bfloat16(), jl.split()
    finite = np.isfinite(np.asarray(p, np.float32))

    @jax.jit
    def trip(residual):
        value = format.read(p, residual)
        update, again = format.write(p, value, jnp.zeros(p.shape, jnp.uint32))
        new = (p.astype(jnp.float32) + update).astype(jnp.bfloat16)
        return value, format.read(new, again), new

    for r in range(-128, 128):
        value, back, new = (np.asarray(x) for x in trip(jnp.full(p.shape, r, jnp.int8)))
        ordinary = finite & np.isfinite(value) & np.isfinite(new.astype(np.float32))
        ordinary &= np.abs(value) >= 2.0**-126  # XLA:CPU flushes what is below to 0
        off = np.abs(back[ordinary].astype(np.float64) - value[ordinary])
        # exact, but where two of the 2^24 codes stand for one tie: there one step of the residual
        step = np.maximum(np.abs(value[ordinary]).astype(np.float64) * 2.0**-15, 1e-37)
        assert np.all(off <= step), r
        if -128 < r < 127:
            np.testing.assert_array_equal(back[ordinary], value[ordinary])


@pytest.mark.parametrize("make", FORMATS)
def test_what_is_not_finite_stays_so(make):
    p = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, 1.0], jnp.bfloat16)
    rule = jl.stored(jl.gradient_descent(1.0), params=make())
    updates, _ = rule.update(jnp.asarray([0.0, 0.0, 0.0, jnp.nan], jnp.bfloat16), rule.init(p), p)
    new = np.asarray((p.astype(jnp.float32) + updates).astype(jnp.bfloat16), np.float32)
    assert not np.isfinite(new).any()


@pytest.mark.parametrize("make", FORMATS)
def test_apply_updates_lands_on_what_is_meant(make, as_optax_adds):
    """For steps of every size, from a thousandth of the distance of two numbers to 2^30 times the parameter."""
    r = np.random.default_rng(0)
    p = jnp.asarray(r.normal(size=8192) * 10.0 ** r.uniform(-6, 6, size=8192), jnp.bfloat16)
    step = jnp.asarray(
        np.asarray(p, np.float32) * 10.0 ** r.uniform(-6, 9, size=8192) * r.choice([-1, 1], 8192), jnp.float32
    )
    rule = jl.stored(jl.gradient_descent(1.0), params=make())
    updates, state = rule.update(-step, rule.init(p), p)
    new = optax.apply_updates(p, updates)
    assert new.dtype == jnp.bfloat16
    meant = np.asarray(p, np.float64) + np.asarray(step, np.float64)
    got = np.asarray(new if state.residuals is None else make().read(new, state.residuals), np.float64)
    spacing = 2.0 ** (-7 if state.residuals is None else -15)
    bound = np.abs(meant) * spacing + np.abs(np.asarray(p, np.float64)) * 2.0**-23
    assert np.all(np.abs(got - meant) <= bound)


@pytest.mark.compat
@pytest.mark.parametrize("make", FORMATS)
def test_small_steps_are_not_lost(make, as_optax_adds):
    p = jnp.ones(512, jnp.bfloat16)
    rule = jl.stored(jl.gradient_descent(1e-3), params=make())

    def step(carry, _):
        p, state = carry
        updates, state = rule.update(-jnp.ones_like(p), state, p)
        return (optax.apply_updates(p, updates), state), None

    (p, state), _ = jax.jit(lambda p: jax.lax.scan(step, (p, rule.init(p)), length=1000))(p)
    got = np.asarray(p if state.residuals is None else make().read(p, state.residuals), np.float64)
    assert abs(got.mean() - 2.0) < 0.02
    if make is jl.split:
        assert np.all(np.abs(got - 2.0) < 0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frozen = optax.apply_updates(jnp.ones(4, jnp.bfloat16), jnp.full(4, 1e-3, jnp.float32))
    np.testing.assert_array_equal(np.asarray(frozen, np.float32), 1.0)  # what they are for


def test_low_precision_without_a_format_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"stored: parameters in low precision lose small steps: 'w'\. Pass params=jl"
    ):
        jl.stored(jl.adam(1e-3), mu=jl.int8()).init({"w": jnp.ones((64, 64), jnp.bfloat16)})


def test_the_rule_sees_float32():
    seen = set()

    def update(grads, state, params=None):
        seen.add((grads["w"].dtype.name, params["w"].dtype.name, params["v"].dtype.name))
        return grads, state

    rule = jl.stored(optax.GradientTransformation(lambda p: optax.EmptyState(), update), params=jl.split())
    params = {"w": jnp.ones(3, jnp.bfloat16), "v": jnp.ones(3)}
    updates, state = rule.update(params, rule.init(params), params)
    assert seen == {("float32", "float32", "float32")}
    assert (updates["w"].dtype, state.residuals["w"].dtype, state.residuals["v"]) == (
        jnp.float32,
        jnp.int8,
        None,
    )
    with pytest.raises(ValueError, match="stored: params are needed, got None"):
        rule.update(params, state)
