"""Accumulation: equal to the whole batch, run once a step, nothing that is not finite stays."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh

from .catalog import in_turn, like

P = PartitionSpec
_STEPS = 4


def _params():
    r = np.random.default_rng(0)
    return {
        "w": jnp.asarray(r.normal(size=(16, 24)), jnp.float32),
        "b": jnp.asarray(r.normal(size=5), jnp.float32),
    }


def _micro(dtype=jnp.float32):
    return [jax.tree.map(lambda g: g.astype(dtype), like(_params(), seed)) for seed in range(2 * _STEPS)]


def _mean(grads, weights=None):
    weights = [1.0] * len(grads) if weights is None else weights
    return jax.tree.map(lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)) / sum(weights), *grads)


def _close(got, want, rtol=1e-6):
    def compare(g, w):
        w = np.asarray(w)
        np.testing.assert_allclose(np.asarray(g), w, rtol=rtol, atol=rtol * np.max(np.abs(w)))

    jax.tree.map(compare, got, want)


@pytest.mark.compat
@pytest.mark.parametrize("looped", [False, True], ids=["jit", "scan"])
def test_the_rule_runs_once_on_the_mean(looped):
    rule, inner = jl.accumulate(jl.adam(1e-2), _STEPS), jl.adam(1e-2)
    params, state, want_state = _params(), rule.init(_params()), inner.init(_params())
    grads = _micro()
    if looped:
        stacked = jax.tree.map(lambda *g: jnp.stack(g), *grads)
        state, updates = jax.lax.scan(lambda s, g: rule.update(g, s, params)[::-1], state, stacked)
        found = [jax.tree.map(lambda u, i=i: u[i], updates) for i in range(len(grads))]
    else:
        step, found = jax.jit(rule.update), []
        for g in grads:
            updates, state = step(g, state, params)
            found.append(updates)
        assert step._cache_size() == 1
    for i, updates in enumerate(found):
        if (i + 1) % _STEPS:
            jax.tree.map(
                lambda u: np.testing.assert_array_equal(np.signbit(u) & (np.asarray(u) == 0), True), updates
            )
        else:
            want, want_state = inner.update(_mean(grads[i + 1 - _STEPS : i + 1]), want_state, params)
            _close(updates, want)
    assert int(state.inner[0].count) == 2
    assert int(state.micro_step) == 0


def test_sums_are_kept_in_float32():
    rule = jl.accumulate(jl.gradient_descent(1.0), 512)
    state = rule.init(jnp.zeros(3, jnp.bfloat16))
    assert state.total.dtype == jnp.float32
    step = jax.jit(rule.update)
    for _ in range(512):
        updates, state = step(jnp.full(3, 1.0, jnp.bfloat16), state)  # in bfloat16 the sum would stop at 256
    assert updates.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(updates, np.float32), -1.0)


def test_micro_batches_weigh_what_they_hold():
    rule, params = jl.accumulate(jl.gradient_descent(1.0), _STEPS), _params()
    state, weights = rule.init(params), [3.0, 1.0, 0.0, 6.0]
    grads = _micro()[:_STEPS]
    for g, w in zip(grads, weights, strict=True):
        updates, state = jax.jit(rule.update)(g, state, params, weight=jnp.float32(w))
    _close(updates, jax.tree.map(jnp.negative, _mean(grads, weights)))


@pytest.mark.parametrize("nonfinite", ["skip_micro_batch", "skip_step", "keep"])
def test_a_micro_batch_that_is_not_finite(nonfinite):
    rule = jl.accumulate(jl.adam(1e-2), _STEPS, nonfinite=nonfinite)
    params, grads = _params(), _micro()
    grads[1] = jax.tree.map(lambda g: g.at[0].set(jnp.nan), grads[1])
    state, found = rule.init(params), []
    for g in grads:
        updates, state = jax.jit(rule.update)(g, state, params)
        found.append(updates)
    inner, want_state = jl.adam(1e-2), jl.adam(1e-2).init(params)
    if nonfinite == "keep":
        assert np.isnan(np.asarray(found[3]["w"])).any()
        return
    if nonfinite == "skip_micro_batch":
        want, want_state = inner.update(_mean([grads[0], *grads[2:4]]), want_state, params)
        _close(found[3], want)
    else:
        assert all(np.all(np.asarray(u) == 0) for u in jax.tree.leaves(found[3]))
    want, want_state = inner.update(_mean(grads[4:]), want_state, params)
    _close(found[7], want)  # nothing of it is left in the next step
    assert int(state.skipped) == 1
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(state))


def test_a_step_of_which_nothing_is_left_is_skipped():
    rule, params = jl.accumulate(jl.adam(1e-2), 2), _params()
    before = rule.init(params)
    state = before
    for _ in range(2):
        updates, state = rule.update(jax.tree.map(lambda p: jnp.full_like(p, jnp.inf), params), state, params)
    jax.tree.map(np.testing.assert_array_equal, state.inner, before.inner)
    assert all(np.all(np.asarray(u) == 0) for u in jax.tree.leaves(updates))


def _device_grads(i):
    """Each device's own gradients of micro-batch i, stacked."""
    return jax.tree.map(lambda *g: jnp.stack(g), *[like(_params(), 100 * i + d) for d in range(8)])


@pytest.mark.compat
@in_turn("way", ["pmap", "shard_map", "shard_map typed"], "mode", ["sharded", "deferred"])
def test_in_mapped_axes(mode, way, mesh8):
    inner = optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-2))
    if mode == "sharded":
        rule = jl.zero(jl.accumulate(inner, 2), axis_name="data")
    else:
        rule = jl.accumulate(jl.zero(inner, axis_name="data"), 2, "deferred", axis_name="data")
    params, bad = _params(), 1

    def run(params, grads):
        state = rule.init(params)
        for i in range(4):
            updates, state = rule.update(jax.tree.map(lambda g, i=i: g[0, i], grads), state, params)
        return updates

    grads = jax.tree.map(lambda *g: jnp.stack(g, 1), *[_device_grads(i) for i in range(4)])
    grads["w"] = grads["w"].at[3, bad, 0].set(jnp.nan)  # one device, one micro-batch: all leave it out
    if way == "pmap":
        mapped = jax.pmap(lambda p, g: run(p, jax.tree.map(lambda x: x[None], g)), "data", in_axes=(None, 0))
        updates = jax.tree.map(lambda u: u[2], mapped(params, grads))
    else:
        typed = way.endswith("typed")
        specs = {"mesh": mesh8, "in_specs": (P(), P("data")), "out_specs": P(), "check_vma": typed}
        updates = jax.jit(jax.shard_map(run, **specs))(params, grads)
    want_state = inner.init(params)
    means = [jax.tree.map(lambda g, i=i: g[:, i].mean(0), grads) for i in range(4)]
    _, want_state = inner.update(means[0], want_state, params)
    want, _ = inner.update(_mean(means[2:]), want_state, params)
    _close(updates, want, rtol=2e-6)


def test_deferred_reduces_once_a_step_and_sharded_each_time(mesh8):
    params = {"w": jnp.ones((64, 512))}
    counts = {}
    for mode in ("sharded", "deferred"):
        if mode == "sharded":
            rule = jl.zero(jl.accumulate(jl.adam(1e-2), 2), axis_name="data")
        else:
            rule = jl.accumulate(jl.zero(jl.adam(1e-2), axis_name="data"), 2, "deferred", axis_name="data")

        def run(params, grads, rule=rule):
            state = rule.init(params)
            return jax.lax.scan(lambda s, g: rule.update(g, s, params)[::-1], state, grads)[1]

        specs = {"mesh": mesh8, "in_specs": (P(), P()), "out_specs": P(), "check_vma": False}
        grads = jax.tree.map(lambda p: jnp.stack([p] * 8), params)
        compiled = jax.jit(jax.shard_map(run, **specs)).lower(params, grads).compile()
        found = [c for c in jl.plan.collectives(compiled) if c.kind == "reduce-scatter"]
        assert len(found) == 1
        counts[mode] = found[0]
    # one stands in the loop, the other in a branch of the loop that every second round takes
    assert counts["sharded"].bytes == counts["deferred"].bytes == params["w"].nbytes
    held = jax.eval_shape(
        jax.vmap(
            jl.zero(jl.accumulate(jl.adam(1e-2), 2), axis_name="i").init,
            in_axes=None,
            axis_size=8,
            axis_name="i",
        ),
        params,
    )
    assert held.inner.total["w"].shape == (8, 8, 512)


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["sharded", "deferred"])
@pytest.mark.parametrize("names", [("data",), ("data", "model")], ids=str)
def test_micro_batched_gradients_are_those_of_the_batch(mode, names):
    mesh = make_mesh((8,) if len(names) == 1 else (4, 2), names)
    r = np.random.default_rng(0)
    params = jax.device_put({"w": jnp.asarray(r.normal(size=(16, 8)), jnp.float32)}, NamedSharding(mesh, P()))
    x = jax.device_put(jnp.asarray(r.normal(size=(32, 16)), jnp.float32), NamedSharding(mesh, P("data")))

    def loss(params, x):
        return jnp.mean((x @ params["w"]) ** 2)

    rule = jl.zero(jl.adam(1e-2), mesh, "data", min_bytes=0)
    options = (
        {"shardings": jl.gradient_shardings(rule, params)}
        if mode == "sharded"
        else {"mesh": mesh, "axis": "data"}
    )
    both = jax.jit(jl.microbatched_value_and_grad(loss, 4, mode=mode, **options))
    value, grads = both(params, x)
    want_value, want = jax.value_and_grad(loss)(params, x)
    np.testing.assert_allclose(float(value), float(want_value), rtol=1e-6)
    _close(grads, want, rtol=2e-5)
    _close(jax.jit(jl.microbatched_grad(loss, 4, mode=mode, **options))(params, x), want, rtol=2e-5)


@pytest.mark.parametrize("spec", [P("data", None), P(None, "data")], ids=str)
def test_micro_batched_gradients_among_explicit_axes(spec):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    r = np.random.default_rng(0)
    w, x = (jnp.asarray(r.normal(size=size), jnp.float32) for size in ((16, 24), (64, 16)))

    def loss(w, x):
        return jnp.mean(jnp.square(jnp.tanh(x @ w)))

    want = jax.grad(loss)(w, x)
    with jax.set_mesh(mesh):
        w = jax.device_put(w, NamedSharding(mesh, P()))
        x = jax.device_put(x, NamedSharding(mesh, P("data", None)))
        got = jax.jit(jl.microbatched_grad(loss, 4, shardings=NamedSharding(mesh, spec)))(w, x)
    assert got.sharding.spec == spec
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-8)


def test_one_micro_batch_is_weighed_like_several():
    def loss(w, x):
        return jnp.sum(jnp.square(x @ w)).astype(jnp.bfloat16)

    w, x = jnp.ones(2), jnp.ones((4, 2))
    for steps in (1, 2):
        value, grads = jl.microbatched_value_and_grad(loss, steps, weight=lambda b: jnp.float32(0))(w, x)
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(grads, 0)


def test_micro_batches_weighed_by_tokens():
    r = np.random.default_rng(0)
    w, x = jnp.asarray(r.normal(size=8), jnp.float32), jnp.asarray(r.normal(size=(12, 8)), jnp.float32)
    mask = jnp.asarray(r.integers(0, 2, size=(12,)), jnp.float32).at[:4].set(1.0)

    def total(w, batch):
        return jnp.sum(batch["mask"] * (batch["x"] @ w) ** 2)

    def loss(w, batch):
        return total(w, batch) / jnp.sum(batch["mask"])

    batch = {"x": x, "mask": mask}
    got = jl.microbatched_grad(loss, 3, weight=lambda b: jnp.sum(b["mask"]))(w, batch)
    np.testing.assert_allclose(np.asarray(got), np.asarray(jax.grad(loss)(w, batch)), rtol=1e-5)


def test_errors(mesh8):
    inner = jl.adam(1e-2)
    with pytest.raises(ValueError, match="accumulate: steps is out of range, got 0; an integer >= 1"):
        jl.accumulate(inner, 0)
    with pytest.raises(ValueError, match=r"mode is unknown, got 'later'; 'sharded' or 'deferred'"):
        inspect.unwrap(jl.accumulate)(inner, 2, "later")
    with pytest.raises(TypeError, match="mode 'deferred' needs an axis_name, got None"):
        jl.accumulate(inner, 2, "deferred")
    with pytest.raises(
        ValueError, match=r"accumulate: mode 'deferred' is inside zero, .* Write accumulate.zero"
    ):
        jl.zero(jl.accumulate(inner, 2, "deferred", axis_name="i"), mesh8, "data").init(_params())
    with pytest.raises(
        ValueError, match=r"zero: the rule is inside accumulate.mode='sharded'.*Write zero.accumulate"
    ):
        jl.accumulate(jl.zero(inner, mesh8, "data"), 2).init(_params())
    with pytest.raises(
        ValueError, match=r"a leaf of the batch has shape .7, 2.; a leading axis divisible by steps=2"
    ):
        jl.microbatched_grad(lambda p, x: p, 2)(jnp.ones(()), jnp.ones((7, 2)))
    with pytest.raises(TypeError, match="mode 'deferred' needs a mesh and an axis"):
        jl.microbatched_grad(lambda p, x: p, 2, mode="deferred")
    with pytest.raises(ValueError, match=r"microbatched_grad: a leaf of the batch has shape \(\); a leading"):
        jl.microbatched_grad(lambda p, x: p, 2)(jnp.ones(()), {"x": jnp.ones((4, 2)), "scale": 1.0})
    with pytest.raises(ValueError, match=r"microbatched_grad: the batch has no arrays. Pass at least one"):
        jl.microbatched_grad(lambda p, x: p, 2)(jnp.ones(()), {})
    with pytest.raises(ValueError, match="no zero over all the parameters is in the rule"):
        jl.gradient_shardings(inner, _params())


@pytest.mark.parametrize("mode", ["sharded", "deferred"])
def test_everything_can_be_donated(mode):
    if mode == "sharded":
        rule, params = jl.accumulate(jl.adam(1e-2), 2), _params()
        step = jax.jit(rule.update, donate_argnums=1)
        state = rule.init(params)
    else:
        rule = jl.accumulate(jl.zero(jl.adam(1e-2), axis_name="i"), 2, "deferred", axis_name="i")
        params = jl.replicate(_params())
        step = jax.pmap(rule.update, axis_name="i", donate_argnums=1)
        state = jax.pmap(rule.init, axis_name="i")(params)
    _, after = jax.block_until_ready(step(params, state, params))
    assert all(x.is_deleted() for x in jax.tree.leaves(state))
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_deferred_gradients_that_nothing_reduces_are_refused():
    copies = jl.replicate(_params())
    for inner, covered in (
        (jl.adam(1e-2), 0),
        (jl.partition({"w": jl.zero(jl.adam(1e-2), axis_name="i"), "*": jl.adam(1e-2)}), 1),
    ):
        rule = jl.accumulate(inner, 2, "deferred", axis_name="i")
        with pytest.raises(
            ValueError, match=f"nothing reduces over 'i': zero covers {covered} of 2 parameters"
        ):
            jax.pmap(rule.init, axis_name="i")(copies)


def test_deferred_sums_survive_the_way_to_disk_and_back():
    """Between two micro-batches each device holds a sum of its own."""
    rule = jl.accumulate(jl.zero(jl.sgd(1.0), axis_name="i"), 2, "deferred", axis_name="i")
    copies = jl.replicate({"b": jnp.ones(3)})
    state, step = jax.pmap(rule.init, axis_name="i")(copies), jax.pmap(rule.update, axis_name="i")
    own = {"b": jnp.arange(8.0)[:, None] * jnp.ones((8, 3))}
    _, state = step(own, state, copies)
    whole = jl.to_global(state)
    np.testing.assert_array_equal(np.asarray(whole.total.parts["b"]), 28 * np.ones((1, 3)))
    straight, _ = step(own, state, copies)
    back = jl.to_per_device(jax.tree.map(np.asarray, whole), state)
    resumed, _ = step(own, back, copies)
    _close(resumed, straight)
    np.testing.assert_array_equal(np.asarray(straight["b"]), -3.5 * np.ones((8, 3)))


def test_deferred_state_passes_in_and_out_of_shard_map(mesh8):
    rule = jl.accumulate(jl.zero(jl.adam(1e-2), axis_name="data"), 2, "deferred", axis_name="data")
    specs = jl.mapped_state_specs(rule, _params(), {"data": 8})
    params = _params()
    init = jax.jit(jax.shard_map(rule.init, mesh=mesh8, in_specs=P(), out_specs=specs))
    step = jax.jit(
        jax.shard_map(
            lambda g, s, p: rule.update(jax.tree.map(lambda x: x[0], g), s, p),
            mesh=mesh8,
            in_specs=(P("data"), specs, P()),
            out_specs=(P(), specs),
        )
    )
    state = init(params)
    for i in range(2):
        updates, state = jax.block_until_ready(step(_device_grads(i), state, params))
        state = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), state)
    mean = jax.tree.map(lambda a, b: (a.mean(0) + b.mean(0)) / 2, _device_grads(0), _device_grads(1))
    want, _ = jl.adam(1e-2).update(mean, jl.adam(1e-2).init(params), params)
    _close(updates, want)


def test_a_device_without_tokens_counts_for_nothing(mesh8):
    x = jax.device_put(jnp.arange(32.0).reshape(16, 2), NamedSharding(mesh8, P("data")))
    mask = jax.device_put(jnp.ones(16).at[2:4].set(0.0), NamedSharding(mesh8, P("data")))

    def loss(w, batch):
        weight = jnp.sum(batch["mask"])
        return jnp.sum(batch["mask"] * (batch["x"] @ w)) / jnp.where(weight > 0, weight, 1.0)

    batch, options = {"x": x, "mask": mask}, {"mode": "deferred", "mesh": mesh8, "axis": "data"}
    both = jl.microbatched_value_and_grad(loss, 2, weight=lambda b: jnp.sum(b["mask"]), **options)
    value, grad = jax.jit(both)(jnp.ones(2), batch)
    want_value, want = jax.value_and_grad(loss)(jnp.ones(2), batch)
    np.testing.assert_allclose(float(value), float(want_value), rtol=1e-5)
    _close(grad, want, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_of_float64_stays_so(steps):
    with jax.enable_x64(True):
        x = jnp.arange(8.0).reshape(4, 2) / 3
        loss, grads = jl.microbatched_value_and_grad(lambda w, x: jnp.mean(x @ w), steps)(jnp.ones(2), x)
        assert loss.dtype == grads.dtype == jnp.float64
        np.testing.assert_allclose(loss, jnp.mean(x @ jnp.ones(2)), rtol=1e-15)


# --- windows that do not fill, and windows that grow -----------------------------------------------------


def _grads(n):
    return {"w": jnp.linspace(0.0, 1.0, 6) * (n + 1.0), "b": jnp.full(3, 0.5 - n)}


@pytest.mark.parametrize("wrap", ["alone", "zero", "stored", "clipped"])
def test_flush_steps_on_what_there_is(wrap, mesh8):
    params = {"w": jnp.ones(6), "b": jnp.ones(3)}
    inner = jl.adamw(0.1)
    rule = jl.accumulate(inner, 4)
    rule = jl.zero(rule, mesh8, "data") if wrap == "zero" else rule
    rule = jl.accumulate(jl.stored(inner, mu=jl.float32()), 4) if wrap == "stored" else rule
    rule = optax.chain(jl.clip_by_global_norm(100.0), rule) if wrap == "clipped" else rule
    state = rule.init(params)
    for n in range(3):
        updates, state = jax.jit(rule.update)(_grads(n), state, params)
        assert all((u == 0).all() for u in jax.tree.leaves(updates))
    updates, state = jax.jit(lambda s, p: jl.flush(rule, s, p))(state, params)
    mean = jax.tree.map(lambda *xs: sum(xs) / 3, *(_grads(n) for n in range(3)))
    expected, _ = jax.jit(inner.update)(mean, inner.init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)
    again, after = jl.flush(rule, state, params)
    assert all((u == 0).all() for u in jax.tree.leaves(again))  # nothing is waiting
    named = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_flatten_with_path(after)[0]}
    counts = [int(x) for name, x in named.items() if "micro_step" in name]
    assert counts == [0]


def test_steps_may_follow_a_schedule():
    """Windows of 1, 2, 3 ... micro-batches: each step is on the mean of its own."""
    rule = jl.accumulate(jl.sgd(1.0), lambda made: made + 1)
    params, traces, sizes, moved = jnp.zeros(1), [], [], []
    state, waiting = rule.init(params), 0

    @jax.jit
    def step(g, state):
        traces.append(1)
        return rule.update(g, state, params)

    for n in range(15):
        updates, state = step(jnp.array([float(n)]), state)
        waiting += 1
        if float(updates[0]) != 0 or n == 0:
            sizes.append(waiting)
            moved.append(-float(updates[0]))
            waiting = 0
    assert sizes == [1, 2, 3, 4, 5]
    assert moved == pytest.approx([0.0, 1.5, 4.0, 7.5, 12.0])
    assert int(state.made) == 5
    assert len(traces) == 1


def test_what_steps_may_be():
    with pytest.raises(ValueError, match="steps is out of range, got 0; an integer >= 1, or a schedule"):
        jl.accumulate(jl.sgd(0.1), 0)
