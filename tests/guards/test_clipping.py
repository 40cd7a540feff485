"""Clipping of leaves, blocks, units, updates, beside NumPy and optax, whole and in shares."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

from ..catalog import like, mixed_params

_PARAMS = {
    "a": jnp.linspace(-2.0, 2.0, 96).reshape(8, 12),
    "b": jnp.linspace(0.1, 2.0, 16),
    "c": jnp.ones(()),
}


def _run(rule, gradients, params=_PARAMS):
    state, made = rule.init(params), []
    step = jax.jit(rule.update)
    for grads in gradients:
        updates, state = step(grads, state, params)
        made.append(updates)
    return made, state


def _gradients(count, scale=1.0):
    return [like(_PARAMS, seed, scale) for seed in range(count)]


def _norm(x):
    return float(np.sqrt(np.sum(np.square(np.asarray(x, np.float64)))))


def test_each_leaf_has_its_own_norm():
    (grads,) = _gradients(1)
    ((made,), _) = _run(jl.clip_per_leaf(0.7), [grads])
    for name, g in grads.items():
        np.testing.assert_allclose(made[name], np.asarray(g) * min(1.0, 0.7 / _norm(g)), rtol=1e-6)


def test_blocks_beside_optax():
    (grads,) = _gradients(1, 5.0)
    ((ours,), _) = _run(jl.clip_by_block_rms(1.3), [grads])
    ((theirs,), _) = _run(optax.clip_by_block_rms(1.3), [grads])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_units_beside_optax(eps):
    params = {
        **_PARAMS,
        "d": jnp.linspace(-1.0, 1.0, 360).reshape(3, 3, 8, 5),
        "f": jnp.ones((2, 2, 2, 3, 4)),
        "e": jnp.zeros((1, 7)),
    }
    grads = like(params, 3, 4.0)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        ((theirs,), _) = _run(optax.adaptive_grad_clip(0.3, eps), [grads], params)
    ((ours,), _) = _run(jl.adaptive_grad_clip(0.3, eps), [grads], params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), ours, theirs)


def test_units_of_stacked_layers():
    """A stack is clipped as its layers are."""
    stack = {"layers": jnp.linspace(-1.0, 1.0, 60).reshape(3, 4, 5)}
    grads = like(stack, 1, 3.0)
    ((made,), _) = _run(jl.adaptive_grad_clip(0.2, axes={"layers": (-2,)}), [grads], stack)
    for n in range(3):
        one = {"layers": stack["layers"][n]}
        ((alone,), _) = _run(jl.adaptive_grad_clip(0.2), [{"layers": grads["layers"][n]}], one)
        np.testing.assert_allclose(made["layers"][n], alone["layers"], rtol=1e-6)


def test_updates_are_clipped_and_moments_see_everything():
    gradients = _gradients(4, 100.0)
    plain, whole = _run(jl.adam(0.5), gradients)
    for how, bound in (({"max_norm": 0.3}, "norm"), ({"max_rms": 0.01}, "rms")):
        made, state = _run(jl.clip_updates(jl.adam(0.5), **how), gradients)
        jax.tree.map(np.testing.assert_array_equal, state.inner, whole)
        for u, p in zip(made, plain, strict=True):
            if bound == "norm":
                factor = min(1.0, 0.3 / _norm(np.concatenate([np.ravel(x) for x in jax.tree.leaves(p)])))
                jax.tree.map(lambda x, y, f=factor: np.testing.assert_allclose(x, y * f, rtol=1e-5), u, p)
            else:
                assert all(_norm(x) / np.sqrt(x.size) <= 0.01 * (1 + 1e-6) for x in jax.tree.leaves(u))


@pytest.mark.parametrize("per_leaf", [False, True])
def test_the_mean_norm_beside_numpy(per_leaf):
    scales = [1.0, 1.2, 0.8, 40.0, 1.1, 0.9, 300.0, 1.0]
    gradients = [like(_PARAMS, seed, scale) for seed, scale in enumerate(scales)]
    made, state = _run(jl.clip_by_ema_norm(1.5, 0.9, per_leaf=per_leaf), gradients)
    groups = [[name] for name in _PARAMS] if per_leaf else [list(_PARAMS)]
    for names in groups:
        mean = None
        for grads, updates in zip(gradients, made, strict=True):
            norm = _norm(np.concatenate([np.ravel(grads[n]) for n in names]))
            most = norm if mean is None else 1.5 * mean
            for n in names:
                np.testing.assert_allclose(
                    updates[n], np.asarray(grads[n]) * min(1.0, most / norm), rtol=2e-5
                )
            mean = norm if mean is None else 0.9 * mean + 0.1 * min(norm, most)
        kept = state.norm[names[0]] if per_leaf else state.norm
        assert float(kept) == pytest.approx(mean, rel=1e-5)
    assert int(state.count) == len(scales)


_GUARDS = {
    "per leaf": lambda: jl.clip_per_leaf(0.5),
    "block": lambda: jl.clip_by_block_rms(0.05),
    "units": lambda: jl.adaptive_grad_clip(0.1),
    "mean norm": lambda: jl.clip_by_ema_norm(1.2, 0.8),
    "mean norms": lambda: jl.clip_by_ema_norm(1.2, 0.8, per_leaf=True),
}
_RULES = {name: lambda make=make: optax.chain(make(), jl.adam(0.1)) for name, make in _GUARDS.items()}
_RULES["updates"] = lambda: jl.clip_updates(jl.adam(0.1), 0.01)
_RULES["updates' rms"] = lambda: jl.clip_updates(jl.adam(0.1), max_rms=0.001)


@pytest.mark.parametrize("name", _RULES)
@pytest.mark.parametrize("where", ["zero", "shard_map", "pmap", "apply", "accumulate", "stored"])
def test_on_shares_as_on_whole_leaves(name, where, mesh8):
    """Norms are of whole leaves, wherever the parts are."""
    params = {"w": jnp.linspace(-1.0, 1.0, 24 * 16).reshape(24, 16), "v": jnp.linspace(0.2, 1.0, 21)}
    gradients = [like(params, seed, 10.0 ** (seed % 3 - 1)) for seed in range(4)]
    rule = _RULES[name]()
    alone, state = params, rule.init(params)
    for grads in gradients:
        updates, state = jax.jit(rule.update)(grads, state, alone)
        alone = optax.apply_updates(alone, updates)
    found = _elsewhere(rule, where, params, gradients, mesh8)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), found, alone)


def _elsewhere(rule, where, params, gradients, mesh):
    if where in ("shard_map", "pmap"):
        own = jl.zero(rule, axis_name="data")

        def run(p):
            state = own.init(p)
            for grads in gradients:
                updates, state = own.update(grads, state, p)
                p = optax.apply_updates(p, updates)
            return p

        if where == "pmap":
            made = jax.pmap(run, axis_name="data")(jl.replicate(params))
            assert all((x == x[:1]).all() for x in jax.tree.leaves(made))
            return jax.tree.map(lambda x: x[0], made)
        spec = jax.sharding.PartitionSpec()
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(params)
    if where == "zero":
        rule = jl.zero(rule, mesh, "data")
    if where == "accumulate":
        rule = jl.accumulate(rule, 1)
    if where == "stored":
        rule = jl.stored(rule, mu=jl.float32())
    state = rule.init(params)

    @jax.jit
    def step(grads, state, p):
        if where == "apply":
            return jl.apply(rule, grads, state, p)
        updates, state = rule.update(grads, state, p)
        return optax.apply_updates(p, updates), state

    for grads in gradients:
        params, state = step(grads, state, params)
    return params


@pytest.mark.parametrize("name", _GUARDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_zero_tiny_and_huge_gradients(name, dtype):
    params = mixed_params(dtype)
    rule = _GUARDS[name]()
    state = rule.init(params)
    for scale in (0.0, 1e-6, 1.0, 1e4):
        grads = jax.tree.map(lambda p, s=scale: jnp.full_like(p, s), params)
        updates, state = jax.jit(rule.update)(grads, state, params)
        for u, g in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
            assert u.dtype == g.dtype
            assert bool(jnp.isfinite(u).all())


@pytest.mark.parametrize("name", _GUARDS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_step_that_is_not_finite_is_dropped_whole(name, bad):
    """With `skip_nonfinite` around it the averages too are as if the step had not been."""
    rule = jl.skip_nonfinite(_RULES[name]())
    gradients = _gradients(5)
    broken = {**gradients[2], "b": gradients[2]["b"].at[3].set(bad)}
    made, state = _run(rule, [*gradients[:2], broken, *gradients[2:]])
    clean, expected = _run(rule, gradients)
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected.inner)
    jax.tree.map(np.testing.assert_array_equal, made[3:], clean[2:])
    assert int(state.skipped) == 1


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (lambda: jl.clip_per_leaf(0.0), ValueError, "max_norm is out of range, got 0.0"),
        (lambda: jl.clip_by_block_rms(-1.0), ValueError, "threshold is out of range"),
        (lambda: jl.adaptive_grad_clip(0.0), ValueError, "clipping is out of range"),
        (lambda: jl.clip_by_ema_norm(0.0), ValueError, "ratio is out of range"),
        (lambda: jl.clip_by_ema_norm(decay=1.0), ValueError, "decay is out of range"),
        (lambda: jl.clip_updates(jl.sgd(0.1)), TypeError, "one bound is needed, got max_norm=None"),
        (lambda: jl.clip_updates(jl.sgd(0.1), 1.0, max_rms=1.0), TypeError, "one bound is needed"),
        (lambda: jl.clip_updates(0.1, 1.0), TypeError, "rule is not a rule, got 0.1"),
    ],
)
def test_what_is_refused(make, error, expected):
    with pytest.raises(error, match=expected):
        make()
    deep = {"w": jnp.ones((2, 2, 2, 2, 2, 2))}
    with pytest.raises(ValueError, match=r"a leaf has 6 dimensions, got \(2, 2, 2, 2, 2, 2\)\. Say the axes"):
        jl.adaptive_grad_clip(0.1).update(deep, jl.adaptive_grad_clip(0.1).init(deep), deep)


@pytest.mark.parametrize("first", [0.0, jnp.nan, jnp.inf])
@pytest.mark.parametrize("per_leaf", [False, True])
def test_a_leaf_that_begins_with_nothing_is_not_held_for_ever(first, per_leaf):
    rule = jl.clip_by_ema_norm(1.5, per_leaf=per_leaf)
    state = rule.init({"w": jnp.zeros(2)})
    for g in (first, 1.0, 1.0):
        updates, state = rule.update({"w": jnp.full(2, g)}, state)
    assert updates["w"].tolist() == [1.0, 1.0]


def test_they_stand_around_accumulation_and_behind_frozen_leaves():
    params = {"w": jnp.zeros(2), "frozen": jnp.zeros(2)}
    for wrap in (
        lambda rule: jl.clip_updates(rule, 0.1),
        lambda rule: jl.with_multipliers(rule, {"w": 0.5}),
        lambda rule: jl.mup(rule, params),
    ):
        rule = wrap(jl.accumulate(jl.sgd(1.0), 2))
        state = rule.init(params)
        for _ in range(2):
            updates, state = rule.update(jax.tree.map(jnp.ones_like, params), state, params)
        assert float(updates["w"][0]) < 0
