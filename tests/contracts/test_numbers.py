"""Numbers: rules agree with their papers, in any dtype, for any gradient."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large._hyperparameters import NonNegative

from ..catalog import RULES, every_rule, every_variant, in_turn, like, mixed_params

_STEPS = 100


def _run(rule, params, gradients):
    """Parameters after each step, in one compiled loop."""

    def step(carry, grads):
        params, state = carry
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, rule.init(p)), g)[1])(params, gradients)


@pytest.mark.compat
@every_variant
def test_equals_the_paper_in_float64(case, x64):
    r = np.random.default_rng(1)
    start, grads = r.normal(size=(5, 7)), r.normal(size=(_STEPS, 5, 7))
    expected = np.stack(list(case.oracle(list(grads), start, case.rate, **case.settings)))
    got = _run(case.rule(), jnp.asarray(start), jnp.asarray(grads))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@every_variant
def test_equals_optax_in_float32(case):
    r = np.random.default_rng(2)
    start = jnp.asarray(r.normal(size=(5, 7)), jnp.float32)
    grads = jnp.asarray(r.normal(size=(_STEPS, 5, 7)), jnp.float32)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that optax wants to leave behind
        expected = _run(case.peer(), start, grads)
    # optax computes 1 - b**t by subtraction, which costs it digits in the first steps
    np.testing.assert_allclose(_run(case.rule(), start, grads), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.compat
@in_turn("case", RULES, "dtype", ["bfloat16", "float16", "float32"])
def test_moments_are_float32_and_updates_have_the_gradients_dtype(case, dtype):
    params = mixed_params(dtype)
    rule = case.rule()
    state = rule.init(params)
    updates, state = rule.update(like(params, 0), state, params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(state) if x.ndim} <= {jnp.dtype(jnp.float32)}
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@every_rule
def test_float64_leaves_keep_float64_moments(case, x64):
    params = mixed_params(jnp.float64)
    updates, state = case.rule().update(like(params, 0), case.rule().init(params), params)
    floats = [x for x in jax.tree.leaves((updates, state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float64)}


@in_turn("case", RULES, "dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_follows_float32_to_one_rounding(case, dtype):
    """On the same gradients, the update is that of float32, rounded once."""
    params = like({"w": jnp.zeros((8, 8), dtype)}, 3)
    rule = case.rule()
    low, high = rule.init(params), rule.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))
    for seed in range(5):
        grads = like(params, seed)
        wide = jax.tree.map(lambda x: x.astype(jnp.float32), (grads, params))
        updates, low = rule.update(grads, low, params)
        expected, high = rule.update(wide[0], high, wide[1])
        assert updates["w"].tolist() == expected["w"].astype(dtype).tolist()


@pytest.mark.compat
@every_rule
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e20])
def test_zero_tiny_and_huge_gradients_stay_finite(case, size, x64):
    params = {"w": jnp.ones((4, 8), jnp.float32)}
    signs = np.where(np.arange(32).reshape(4, 8) % 2, 1.0, -1.0)
    grads = {"w": jnp.asarray(size * signs, jnp.float32)}
    rule, start = case.rule(), np.ones((4, 8))
    state, now = rule.init(params), params
    expected = list(case.oracle([size * signs] * 5, start, case.rate, **case.settings))
    for step in range(5):
        updates, state = rule.update(grads, state, now)
        now = optax.apply_updates(now, updates)
        leaves = jax.tree.leaves((now, state))
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in leaves)
        if size < 1e19 or "saturates" not in case.notes:
            np.testing.assert_allclose(now["w"], expected[step], rtol=2e-4, atol=1e-6)
    # and the rule still moves afterwards
    updates, state = rule.update({"w": jnp.full((4, 8), 0.1)}, state, now)
    assert bool(jnp.all(jnp.isfinite(updates["w"])))


@in_turn("case", RULES, "bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gradients_show_in_their_own_coordinate_only(case, bad):
    case.skip_if("whole leaves", "all leaves")
    params = {"w": jnp.ones((4,))}
    rule, moved = case.rule(), params
    state = rule.init(params)
    for _ in range(2):  # of some rules the first step moves nothing
        updates, state = rule.update({"w": jnp.array([1.0, bad, 1.0, 1.0])}, state, moved)
        moved = optax.apply_updates(moved, updates)
    moved = moved["w"]
    healthy = jnp.array([0, 2, 3])
    assert bool(jnp.all(jnp.isfinite(moved[healthy])))
    if np.isnan(bad):
        assert bool(jnp.isnan(moved[1]))
    for x in jax.tree.leaves(state):
        assert x.ndim == 0 or bool(jnp.all(jnp.isfinite(x[healthy])))


@every_rule
def test_no_denominator_divides_by_zero(case):
    eps = inspect.signature(case.ours).parameters.get("eps")
    may_be_zero = eps is not None and eps.annotation == NonNegative
    rule = case.rule(**({"eps": 0.0} if may_be_zero else {}))
    params = {"w": jnp.ones((4,))}
    updates, _ = rule.update({"w": jnp.zeros((4,))}, rule.init(params), params)
    assert bool(jnp.all(jnp.isfinite(updates["w"])))


def test_second_moment_of_bfloat16_parameters_decays():
    """In bfloat16 optax's stays at 10 for ever."""
    rule = jl.adam(1e-3)
    params = {"w": jnp.ones((4,), jnp.bfloat16)}
    _, state = rule.update({"w": jnp.full((4,), 100.0, jnp.bfloat16)}, rule.init(params), params)
    zero = {"w": jnp.zeros((4,), jnp.bfloat16)}
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 5000, lambda _, s: rule.update(zero, s, params)[1], s))(
        state
    )
    np.testing.assert_allclose(state[0].nu["w"], 10.0 * 0.999**5000, rtol=1e-3)


def test_weight_decay_survives_bfloat16():
    """Rounded after each stage, 0.1 * 0.01 would vanish beside a direction of 1."""
    params = {"w": jnp.full((4,), 0.01, jnp.bfloat16)}
    grads = {"w": jnp.ones((4,), jnp.bfloat16)}
    with_decay, _ = jl.adamw(1.0, weight_decay=0.8).update(grads, jl.adamw(1.0).init(params), params)
    without, _ = jl.adamw(1.0, weight_decay=0.0).update(grads, jl.adamw(1.0).init(params), params)
    assert float(with_decay["w"][0]) < float(without["w"][0])


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999, 0.0])
def test_bias_correction_has_no_cancellation(decay):
    from jaxopt_large._numerics import bias_correction

    for steps in (1, 2, 10, 10_000, 2_000_000):
        expected = -np.expm1(steps * np.log(decay)) if decay else 1.0
        got = float(bias_correction(decay, jnp.int32(steps)))
        assert got == pytest.approx(expected, rel=1e-6)
        if 0 < steps * (1 - decay) < 1e-2:
            naive = float(jnp.float32(1) - jnp.float32(decay) ** jnp.float32(steps))
            assert naive != pytest.approx(expected, rel=1e-6)  # what this test is there to catch


def test_counter_stays_at_the_largest_integer():
    rule = jl.adam(1e-3)
    params = {"w": jnp.ones((2,))}
    (adam_state, rest) = rule.init(params)
    last = (adam_state._replace(count=jnp.int32(2**31 - 1)), rest)
    updates, state = rule.update(params, last, params)
    assert int(state[0].count) == 2**31 - 1
    assert bool(jnp.all(jnp.isfinite(updates["w"])))


@every_rule
def test_learning_rate_may_be_a_number_a_schedule_or_an_array(case):
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}
    grads = like(params, 0)

    def first(rate):
        rule = case.rule(rate)
        return rule.update(grads, rule.init(params), params)[0]

    expected = first(0.25)
    schedules = (lambda count: 0.25, jl.constant_schedule(0.25))
    numbers = (jnp.float32(0.25), np.float32(0.25))
    for got in (
        *map(first, numbers if "no schedule" in case.notes else schedules + numbers),
        jax.jit(lambda rate: first(rate))(jnp.float32(0.25)),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


@every_rule
def test_schedules_are_called_with_the_number_of_steps_before(case):
    case.skip_if("no schedule", "keeps going", "goes on")
    rule = case.rule(lambda count: jnp.where(count == 2, 1.0, 0.0))
    params = {"w": jnp.ones((2,))}
    state, moved = rule.init(params), []
    for _ in range(4):
        updates, state = rule.update({"w": jnp.ones((2,))}, state, params)
        moved.append(bool(jnp.any(updates["w"] != 0)))
    # with momentum after the learning rate, as in rmsprop, an old step would go on moving
    assert moved == [False, False, True, False]


@every_rule
def test_each_rule_is_its_direction_times_the_learning_rate(case):
    direction = case.direction()
    chained = optax.chain(direction, jl.scale_by_learning_rate(case.rate))
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)}
    ours, theirs = case.rule(), chained
    a, b = ours.init(params), theirs.init(params)
    for seed in range(3):
        grads = like(params, seed)
        u, a = ours.update(grads, a, params)
        v, b = theirs.update(grads, b, params)
        np.testing.assert_allclose(u["w"], v["w"], rtol=1e-6)
    leaves = [jax.tree.leaves(x) for x in (a, b)]
    assert len(leaves[0]) == len(leaves[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_moment_dtype_can_be_chosen(dtype):
    params = {"w": jnp.ones((4,))}
    for rule, field in ((jl.adam(1e-3, mu_dtype=dtype), "mu"), (jl.lion(1e-3, mu_dtype=dtype), "mu")):
        _, state = rule.update(params, rule.init(params), params)
        assert getattr(state[0], field)["w"].dtype == jnp.dtype(dtype)
    rule = jl.sgd(1e-3, momentum=0.9, accumulator_dtype=dtype)
    assert rule.init(params)[0].trace["w"].dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("mask", [{"a": True, "b": False}, lambda p: {"a": True, "b": False}])
def test_weight_decay_masks(mask):
    params = {"a": jnp.ones((2,)), "b": {"c": jnp.ones((2,))}}
    zero = jax.tree.map(jnp.zeros_like, params)
    rule = jl.adamw(1.0, weight_decay=0.5, mask=mask)
    updates, _ = rule.update(zero, rule.init(params), params)
    assert updates["a"].tolist() == [-0.5, -0.5]
    assert updates["b"]["c"].tolist() == [0.0, 0.0]


def test_a_slow_decay_keeps_its_digits():
    """1 - 0.9999 is off by 1.7e-4 where 0.9999 is rounded to float32 first."""
    rule = jl.scale_by_ademamix(b3=0.9999)
    params = jnp.ones(3)
    _, state = jax.jit(rule.update)(params, rule.init(params))
    np.testing.assert_allclose(state.m2, 1e-4, rtol=1e-6)


def test_rules_run_op_by_op():
    with jax.disable_jit():
        rule, params = jl.ademamix(0.1), jnp.ones(3)
        updates, _ = rule.update(params, rule.init(params), params)
    assert bool(jnp.all(updates < 0))
