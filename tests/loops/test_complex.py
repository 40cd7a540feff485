"""Complex parameters, as optax has them: squares are |g|^2, second moments are real."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

from ..catalog import some_of

R = np.random.default_rng(0)


def leaf(*shape):
    return jnp.asarray(R.normal(size=shape) + 1j * R.normal(size=shape), jnp.complex64)


PARAMS = {"w": leaf(8, 16), "b": leaf(3), "real": jnp.asarray(R.normal(size=(8, 4)), jnp.float32)}
GRADS = [jax.tree.map(lambda p: p * 0.3 + 1.0, PARAMS), jax.tree.map(lambda p: p * -0.2, PARAMS)]

RULES = {
    "sgd": lambda o: o.sgd(0.1),
    "momentum": lambda o: o.sgd(0.1, 0.9, True),
    "adam": lambda o: o.adam(0.1),
    "nadam": lambda o: o.adam(0.1, nesterov=True),
    "adamw": lambda o: o.adamw(optax.linear_schedule(0.1, 0.0, 10), weight_decay=0.1),
    "adagrad": lambda o: o.adagrad(0.1),
    "rmsprop": lambda o: o.rmsprop(0.1, centered=True, momentum=0.9, bias_correction=True, initial_scale=1.0),
    "lion": lambda o: o.lion(0.1, weight_decay=0.1),
    "clip": lambda o: o.clip_by_global_norm(0.5),
    "decay": lambda o: o.add_decayed_weights(0.1),
}
ADAMW = lambda: jl.adamw(0.1, weight_decay=0.1)  # noqa: E731


def trained(rule, update=None):
    """Updates of the last step, and the state after it."""
    update = jax.jit(rule.update) if update is None else update
    state = rule.init(PARAMS)
    for g in GRADS:
        updates, state = update(g, state, PARAMS)
    return updates, state


def close(got, expected, rtol=1e-5, atol=1e-6):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", some_of(RULES, "sgd", "adam", "adagrad"))
def test_equals_optax(name):
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = trained(RULES[name](optax))
    got, _ = trained(RULES[name](jl))
    close(got, expected)


def test_moments():
    state = jl.adam(0.1).init(PARAMS)[0]
    assert (state.mu["w"].dtype, state.nu["w"].dtype) == (jnp.complex64, jnp.float32)


def test_huge_and_bad_values():
    params = jnp.zeros(3, jnp.complex64)
    grads = jnp.asarray([3e30 + 4e30j, 1e-20j, complex("nan")], jnp.complex64)
    assert float(jl.global_norm(grads[:2])) == pytest.approx(5e30)
    for name in ("adam", "adagrad", "rmsprop"):
        updates, _ = RULES[name](jl).update(grads, RULES[name](jl).init(params))
        assert jnp.isfinite(updates).tolist() == [True, True, False]


WRAPPED = {
    "stored": lambda: jl.stored(ADAMW(), mu=jl.int8()),
    "skip": lambda: jl.skip_nonfinite(ADAMW()),
    "partition": lambda: jl.partition({"*": ADAMW()}),
    "offload": lambda: jl.offload(ADAMW()),
    "clip": lambda: optax.chain(jl.clip_by_global_norm(100.0), ADAMW()),
    "accumulate": lambda: jl.accumulate(ADAMW(), 1),
}


@pytest.mark.parametrize("name", some_of(WRAPPED, "clip", "skip"))
def test_wrappers(name):
    expected, _ = trained(ADAMW())
    got, _ = trained(WRAPPED[name]())
    for key in ("w", "b"):
        close(got[key], expected[key])


def test_zero(mesh8):
    expected, _ = trained(ADAMW())
    close(trained(jl.zero(ADAMW(), mesh8, axis="data", min_bytes=0))[0], expected)


def test_zero_in_a_mapped_axis():
    rule = jl.zero(ADAMW(), axis_name="i")
    expected, _ = trained(ADAMW())

    def steps(params, grads):
        state = rule.init(params)
        for g in grads:
            updates, state = rule.update(g, state, params)
        return updates

    spread = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), (PARAMS, GRADS))
    got = jax.pmap(steps, axis_name="i")(*spread)
    close(jax.tree.map(lambda x: x[0], got), expected)


@pytest.mark.parametrize("name", ["plain", *WRAPPED])
def test_apply(name):
    rule = ADAMW() if name == "plain" else WRAPPED[name]()
    expected = optax.apply_updates(PARAMS, trained(rule)[0])
    params, state = PARAMS, rule.init(PARAMS)
    _, state = jax.jit(rule.update)(GRADS[0], state, PARAMS)
    params, state = jl.apply(rule, GRADS[1], state, PARAMS)
    close(params, expected)


def test_stored_leaves_complex_fields():
    rule = WRAPPED["stored"]()
    _, state = trained(rule)
    assert any(x.dtype == jnp.complex64 for x in jax.tree.leaves(state))
    assert "complex64" in str(jl.explain(rule, PARAMS))


def test_checkpoint(tmp_path):
    rule = WRAPPED["stored"]()
    _, state = trained(rule)
    jl.save(tmp_path / "state", state)
    back = jl.restore(tmp_path / "state", rule.init(PARAMS))
    close(
        back[0] if isinstance(back, tuple) and len(back) == 2 and not hasattr(back, "_fields") else back,
        state,
        0,
        0,
    )
