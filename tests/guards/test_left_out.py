"""Steps that are left out: whatever is injected wherever, the run is as if they had not been, to the bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl

from ..catalog import like

_PARAMS = {"w": jnp.linspace(-1.0, 1.0, 24 * 16).reshape(24, 16), "v": jnp.linspace(0.2, 1.0, 21)}
_SCALE = 2.0**7
_GUARDS = {
    "spikes": lambda rule, **how: jl.skip_spikes(rule, 6.0, warmup=3, **how),
    "loss scale": lambda rule, **how: jl.dynamic_loss_scale(rule, _SCALE, least=_SCALE, most=_SCALE, **how),
    "not finite": lambda rule, **how: jl.skip_nonfinite(rule, **how),
}
_FAULTS = {"nan": jnp.nan, "inf": jnp.inf, "minus inf": -jnp.inf, "spike": 1e3}


def _gradients(name, count=8):
    scale = _SCALE if name == "loss scale" else 1.0
    return [like(_PARAMS, seed, 0.1 * scale) for seed in range(count)]


def _broken(grads, fault, leaf="w"):
    x = grads[leaf]
    bad = x * 1e3 if fault == "spike" else x.at[(5,) * x.ndim].set(_FAULTS[fault])
    return {**grads, leaf: bad}


def _cases():
    for name in _GUARDS:
        for fault in _FAULTS:
            if fault != "spike" or name == "spikes":
                yield pytest.param(name, fault, id=f"{name}, {fault}")


def _same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


_WRAPPED = {
    "alone": lambda guard, mesh: guard(jl.adamw(0.1)),
    "clipped": lambda guard, mesh: guard(optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(0.1))),
    "zero": lambda guard, mesh: jl.zero(guard(jl.adamw(0.1)), mesh, "data"),
    "stored": lambda guard, mesh: guard(jl.stored(jl.adamw(0.1), mu=jl.int8(), nu=jl.int8())),
    "matrices": lambda guard, mesh: guard(jl.muon(0.1)),
    "accumulate": lambda guard, mesh: jl.accumulate(guard(jl.adamw(0.1)), 1, nonfinite="keep"),
}


@pytest.mark.parametrize("where", _WRAPPED)
@pytest.mark.parametrize(("name", "fault"), [*_cases()])
def test_the_run_is_as_if_the_step_had_not_been(name, fault, where, mesh8):
    rule = _WRAPPED[where](_GUARDS[name], mesh8)
    gradients = _gradients(name)
    bad = [*gradients[:5], _broken(gradients[5], fault), _broken(gradients[6], fault, "v"), *gradients[5:]]

    def after(gradients):
        params, state = _PARAMS, rule.init(_PARAMS)
        step = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p))
        for grads in gradients:
            params, state = step(grads, state, params)
        return params, state

    (params, state), (expected, clean) = after(bad), after(gradients)
    _same(params, expected)
    find = functools.partial(jax.tree_util.tree_flatten_with_path)
    for (path, x), (_, y) in zip(find(state)[0], find(clean)[0], strict=True):
        text = jax.tree_util.keystr(path)
        if not any(word in text for word in ("skipped", "in_a_row", ".good", "left_out", "micro")):
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=text)


@pytest.mark.parametrize("where", ["shard_map", "pmap"])
@pytest.mark.parametrize(("name", "fault"), [*_cases()])
def test_a_fault_on_one_device_is_left_out_on_all(name, fault, where, mesh8):
    """Gradients differ between devices: zero makes their mean, and all agree on what is wrong with it."""
    rule = jl.zero(_GUARDS[name](jl.adamw(0.1)), axis_name="data")
    gradients = _gradients(name)
    bad = [*gradients[:5], _broken(gradients[5], fault), *gradients[5:]]

    def run(steps, numbers):
        def own(p, index):
            state = rule.init(p)
            for n, grads in enumerate(steps):
                factor = jnp.where(index == 3, 8.0, 0.0) if n in numbers else 1.0  # all of it on one device
                mine = jax.tree.map(lambda g, f=factor: jnp.where(jnp.asarray(f) == 0, 0.0, g * f), grads)
                updates, state = rule.update(mine, state, p)
                p = optax.apply_updates(p, updates)
            return p

        index = jnp.arange(8)
        if where == "pmap":
            return jax.pmap(lambda p, i: own(p, i), axis_name="data", in_axes=(None, 0))(_PARAMS, index)
        specs = {"in_specs": (P(), P("data")), "out_specs": P("data"), "check_vma": False}
        mapped = jax.shard_map(
            lambda p, i: jax.tree.map(lambda x: x[None], own(p, i[0])), mesh=mesh8, **specs
        )
        return jax.jit(mapped)(_PARAMS, index)

    found, expected = run(bad, {5}), run(gradients, set())
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert bool((x == x[:1]).all())
        np.testing.assert_array_equal(x[0], y[0])


@pytest.mark.parametrize("fault", _FAULTS)
def test_a_micro_batch_that_spikes(fault):
    """Around the accumulation a guard sees each micro-batch; the mean is of the others."""
    rule = jl.accumulate(jl.skip_spikes(jl.adamw(0.1), warmup=3), 2)
    gradients = _gradients("spikes", 16)
    params, state = _PARAMS, rule.init(_PARAMS)
    step = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p))
    for n, grads in enumerate(gradients):
        params, state = step(_broken(grads, fault) if n == 10 else grads, state, params)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))
    assert fault != "spike" or int(state.inner.skipped) == 1
    assert int(state.skipped) == (0 if fault == "spike" else 1)  # a NaN leaves out its micro-batch alone


# --- spikes -------------------------------------------------------------------------------------------


def test_the_bound_beside_numpy():
    """Of the first steps it is that of all; then of what counts less the longer ago it was."""
    rule = jl.skip_spikes(jl.sgd(0.1), 3.0, window=20, warmup=4, give_up=100)
    chance, seen, state = np.random.default_rng(0), [], rule.init(jnp.zeros(1))
    step, skipped = jax.jit(rule.update), 0
    mean = variance = 0.0
    for _ in range(200):
        x = float(np.float32(abs(chance.normal(1.0, 0.1)) + (chance.random() < 0.1) * 3))
        updates, state = step(jnp.array([x]), state, jnp.zeros(1))
        if len(seen) <= 20 and seen:
            assert mean == pytest.approx(np.mean(seen))
            assert variance == pytest.approx(np.var(seen), abs=1e-12)
        if len(seen) >= 4 and x > mean + 3.0 * np.sqrt(variance):
            skipped += 1
            assert float(updates[0]) == 0.0
        else:
            seen.append(float(x))
            share = 1 / min(len(seen), 20)
            variance = (1 - share) * (variance + share * (x - mean) ** 2)
            mean += share * (x - mean)
            assert float(updates[0]) != 0.0
        assert float(state.mean) == pytest.approx(mean, rel=1e-5)
        assert float(state.variance) == pytest.approx(variance, rel=1e-3, abs=1e-9)
    assert int(state.skipped) == skipped > 5
    assert int(state.taken) == len(seen)


def test_a_loss_that_spikes():
    rule = jl.skip_spikes(jl.sgd(0.1), 4.0, warmup=3, of="loss")
    params, state = jnp.zeros(2), rule.init(jnp.zeros(2))
    step = jax.jit(lambda g, s, p, value: rule.update(g, s, p, value=value))
    for loss in (1.0, 0.9, 1.1, 1.0, jnp.nan, 50.0, 0.95):
        updates, state = step(jnp.ones(2), state, params, jnp.float32(loss))
    assert int(state.skipped) == 2
    assert float(updates[0]) == pytest.approx(-0.1)
    with pytest.raises(TypeError, match="value is needed, got None"):
        rule.update(jnp.ones(2), state, params)


def test_it_gives_up_loudly():
    rule = jl.skip_spikes(jl.adam(0.1), warmup=2, give_up=3)
    params, state = jnp.ones(2), rule.init(jnp.ones(2))
    before = None
    for n, scale in enumerate([1.0, 1.01, 1.0, 100.0, 100.0, 100.0, 1.0]):
        updates, state = rule.update(scale * jnp.ones(2), state, params)
        if n in (3, 4):
            assert (updates == 0).all()
        if n == 4:
            before = state.inner
        assert bool(state.given_up) == (n >= 5)
        assert bool(jnp.isnan(updates).all()) == (n >= 5)
    _same(state.inner, before)  # what is kept is that of the last good step


# --- loss scale ---------------------------------------------------------------------------------------


def test_the_scale_is_halved_and_doubled():
    rule = jl.dynamic_loss_scale(jl.sgd(1.0), 16.0, interval=3, least=4.0, most=32.0)
    state, seen = rule.init(jnp.zeros(1)), []
    for good in [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1]:
        g = jnp.array([jl.loss_scale(state) if good else jnp.inf])
        updates, state = jax.jit(rule.update)(g, state, jnp.zeros(1))
        assert float(updates[0]) == (-1.0 if good else 0.0)
        seen.append(float(jl.loss_scale(state)))
    assert seen == [16, 16, 32, 32, 32, 32, 16, 8, 4, 4, 4, 4, 4, 8, 8]
    assert int(state.skipped) == 5


def test_small_gradients_do_not_vanish():
    """1e-9 is 0 in float16; scaled it is not, and the rule sees it in float32."""
    rule = jl.dynamic_loss_scale(jl.sgd(1.0), 2.0**15)
    params = {"w": jnp.zeros(3, jnp.float16)}
    state = rule.init(params)
    grads = {"w": (jnp.full(3, 1e-9) * jl.loss_scale(state)).astype(jnp.float16)}
    updates, _ = rule.update(grads, state, params)
    np.testing.assert_allclose(updates["w"], -1e-9, rtol=2e-3)
    assert updates["w"].dtype == jnp.float32
    assert float(jnp.float16(1e-9)) == 0.0


def test_the_scale_is_in_checkpoints(tmp_path):
    rule = jl.dynamic_loss_scale(jl.adam(0.1), 64.0)
    _, state = rule.update({"w": jnp.full(3, jnp.nan)}, rule.init({"w": jnp.ones(3)}), {"w": jnp.ones(3)})
    jl.save(tmp_path / "c", state)
    assert float(jl.loss_scale(jl.restore(tmp_path / "c", rule.init({"w": jnp.ones(3)})))) == 32.0


# --- rollback -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["alone", "zero", "stored"])
def test_what_is_rolled_back_is_what_was_to_the_bit(where, mesh8):
    inner = jl.adamw(0.1)
    inner = jl.zero(inner, mesh8, "data") if where == "zero" else inner
    inner = jl.stored(inner, mu=jl.int8()) if where == "stored" else inner
    rule = jl.rollback(inner, keep=3)
    params, state = _PARAMS, rule.init(_PARAMS)
    step, history = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p)), []
    gradients = _gradients("spikes", 14)
    for grads in gradients:
        history.append(jax.tree.map(jnp.copy, (params, state.inner)))
        params, state = step(grads, state, params)
    back, rolled = jl.roll_back(params, state)  # snapshots before the steps 9 and 12
    _same((back, rolled.inner), history[9])
    assert int(rolled.count) == 9
    # and on from there, as if the steps between had not been
    for grads in gradients[9:]:
        back, rolled = step(grads, rolled, back)
    _same(back, params)
    again, _ = jl.roll_back(back, rolled)
    _same(again, history[9][0])


def test_everything_is_donated_and_nothing_shared():
    rule = jl.rollback(jl.adam(0.1), keep=2)
    state = rule.init(_PARAMS)
    params = jax.tree.map(jnp.copy, _PARAMS)
    step = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p), donate_argnums=(1, 2))
    for grads in _gradients("spikes", 6):
        params, state = step(grads, state, params)
    params, state = jl.roll_back(params, state)
    params, state = step(_gradients("spikes", 1)[0], state, params)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (lambda: jl.skip_spikes(0.1), TypeError, "rule is not a rule, got 0.1"),
        (lambda: jl.skip_spikes(jl.sgd(0.1), 0.0), ValueError, "sigmas is out of range"),
        (lambda: jl.skip_spikes(jl.sgd(0.1), of="both"), ValueError, "of is unknown, got 'both'"),
        (lambda: jl.skip_spikes(jl.sgd(0.1), window=0), ValueError, "window is out of range"),
        (lambda: jl.dynamic_loss_scale(jl.sgd(0.1), factor=1.0), ValueError, "factor is out of range, got 1.0; a number above 1"),
        (lambda: jl.dynamic_loss_scale(jl.sgd(0.1), 0.0), ValueError, "initial is out of range"),
        (lambda: jl.skip_nonfinite(jl.dynamic_loss_scale(jl.sgd(0.1))).init(jnp.ones(2)), ValueError, r"which would leave out what lowers the scale. Write dynamic_loss_scale\(skip_spikes"),
        (lambda: jl.skip_spikes(jl.dynamic_loss_scale(jl.sgd(0.1))).init(jnp.ones(2)), ValueError, "which would leave out what lowers the scale"),
        (lambda: jl.accumulate(jl.dynamic_loss_scale(jl.sgd(0.1)), 2).init(jnp.ones(2)), ValueError, "leaves out micro-batches that overflow and hides them"),
        (lambda: jl.dynamic_loss_scale(jl.sgd(0.1), 2.0, least=4.0), ValueError, "initial is out of range, got 2.0; least=4.0 to most"),
        (lambda: jl.loss_scale([jl.dynamic_loss_scale(jl.sgd(0.1)).init(jnp.ones(2))] * 2), ValueError, "the state has 2 scales"),
        (lambda: jl.loss_scale(jl.sgd(0.1).init(jnp.ones(2))), ValueError, "the state has no scale"),
        (lambda: jl.rollback(jl.sgd(0.1), keep=0), ValueError, "keep is out of range, got 0"),
        (lambda: jl.roll_back(jnp.ones(2), jl.sgd(0.1).init(jnp.ones(2))), TypeError, "the state is not one of rollback"),
        (lambda: jl.rollback(jl.sgd(0.1), 1).update(jnp.ones(2), jl.rollback(jl.sgd(0.1), 1).init(jnp.ones(2))), ValueError, "params are needed"),
    ],
)  # fmt: skip
def test_what_is_refused(make, error, expected):
    with pytest.raises(error, match=expected):
        make()


def test_a_loss_that_differs_between_devices(mesh8):
    """All decide by its mean."""
    rule = jl.skip_spikes(jl.sgd(0.1), 4.0, warmup=3, of="loss", axis_name="data")

    def own(losses):
        params, state = jnp.zeros(2), rule.init(jnp.zeros(2))
        for n in range(6):
            _, state = rule.update(jnp.ones(2), state, params, value=losses[n])
        return state.skipped

    losses = jnp.ones((8, 6)).at[:, 1].set(1.1).at[3, 4].set(500.0).at[5, 5].set(jnp.nan)
    assert jax.pmap(own, axis_name="data")(losses).tolist() == [2] * 8
    del mesh8


def test_a_huge_norm_in_the_beginning_does_not_blind_it():
    rule = jl.skip_spikes(jl.sgd(0.1), 4.0, window=5, warmup=3)
    state = rule.init(jnp.zeros(1))
    for g in (1.0, 1e25, *[1.0 + 0.01 * n for n in range(400)], 1e4):
        updates, state = jax.jit(rule.update)(jnp.array([g]), state, jnp.zeros(1))
    assert np.isfinite(float(state.variance))
    assert float(updates[0]) == 0.0


def test_flush_is_no_gradient_to_judge():
    rule = jl.skip_spikes(jl.accumulate(jl.sgd(1.0), 4), 6.0, warmup=2)
    params, state = jnp.zeros(2), None
    state = rule.init(params)
    for _ in range(3):
        _, state = rule.update(jnp.ones(2), state, params)
    updates, after = jl.flush(rule, state, params)
    assert updates.tolist() == [-1.0, -1.0]
    assert (float(after.mean), int(after.taken)) == (float(state.mean), int(state.taken))


def test_complex_parameters_keep_their_signs_of_zero():
    rule = jl.skip_nonfinite(jl.sgd(0.1))
    p = jnp.array([complex(-0.0, -0.0)])
    updates, _ = rule.update(jnp.array([complex(jnp.nan, 0.0)]), rule.init(p), p)
    assert np.signbit((p + updates).real).all()
    assert np.signbit((p + updates).imag).all()


def test_values_are_those_of_now_and_not_of_the_snapshots():
    rule = jl.rollback(jl.dynamic_loss_scale(jl.with_hyperparams(jl.sgd, learning_rate=0.5), 8.0), 3)
    params = jnp.zeros(2)
    state = rule.init(params)
    _, state = rule.update(jnp.full(2, jnp.inf), state, params)
    assert float(jl.loss_scale(state)) == 4.0
    assert set(jl.hyperparams(state)) == {"learning_rate"} | set(jl.hyperparams(state))
    state = jl.set_hyperparams(state, learning_rate=0.25)
    assert float(jl.learning_rate(state)) == 0.25
    updates, state = rule.update(jnp.full(2, 4.0), state, params)
    assert updates.tolist() == [-0.25, -0.25]
    scheduled = jl.rollback(jl.sgd(jl.linear_schedule(1.0, 0.0, 4)), 1)
    state = scheduled.init(params)
    for _ in range(3):
        _, state = scheduled.update(params, state, params)
    assert float(jl.learning_rate(state)) == 0.5
