"""Hyper-parameters in the state: the bits of the rule without them, set without compiling, found anywhere."""

import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.rules import RULES as RULES_OF_ALL

from .catalog import VARIANTS

_PARAMS = {"a": jnp.linspace(-1.0, 1.0, 96).reshape(8, 12), "b": jnp.linspace(0.5, 2.0, 12)}
# where the processor has instructions that multiply and add with one rounding, a compiler takes them for some of
# what a rule computes, and for other parts where a number is an argument and no constant
_LAST_BIT = {
    "adagrad-eps outside", "adamax", "adamaxw", "dog", "dowg", "fromage", "noisy_sgd", "normuon", "novograd",
    "polyak_sgd", "rmsprop-corrected",
}  # fmt: skip


def _gradients(k, params=_PARAMS):
    return jax.tree.map(lambda x: jnp.sin(x * (3.0 + k)).astype(x.dtype) * 0.3, params)


def _steps(rule, count, params=_PARAMS, state=None, change=lambda k, state: state, first=0):
    """Parameters and state after some steps; and how often the step was traced."""
    state, traces = rule.init(params) if state is None else state, []

    @jax.jit
    def step(grads, state, params):
        traces.append(1)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for k in range(first, first + count):
        state = change(k, state)
        params, state = step(_gradients(k, params), state, params)
    return params, state, len(traces)


def _close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), a, b)


def _same(a, b):
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=str(path))


# --- every rule ---------------------------------------------------------------------------------------


_MATRICES = [name for name in RULES_OF_ALL if "roles" in inspect.signature(RULES_OF_ALL[name]).parameters]


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_constant_values_give_the_bits_of_the_rule_without(case):
    name = next(iter(inspect.signature(case.ours).parameters))
    turned = case._made(functools.partial(jl.with_hyperparams, case.ours), None, {})
    _beside(str(case), case.rule(), turned, name)


@pytest.mark.parametrize("name", _MATRICES)
def test_constant_values_give_the_bits_of_rules_of_matrices(name):
    make = RULES_OF_ALL[name]
    _beside(name, make(0.0123), jl.with_hyperparams(make, learning_rate=0.0123), "learning_rate")


def _beside(name, plain, turned, first):
    expected, _, _ = _steps(plain, 6)
    found, state, traces = _steps(turned, 6)
    assert traces == 1
    assert first in jl.hyperparams(state) or first == "scaling"
    if name in _LAST_BIT or name.partition("-")[0] in _LAST_BIT:
        _close(found, expected)
    else:
        _same(found, expected)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (optax.adamw, {"learning_rate": 3e-4, "b2": 0.95}),
        (optax.sgd, {"learning_rate": 0.1, "momentum": 0.9}),
        (optax.lion, {"learning_rate": 1e-3}),
        (lambda rate, most: optax.chain(jl.clip_by_global_norm(most), jl.adamw(rate)), {"rate": 0.01, "most": 0.7}),
        (lambda rate, most: optax.chain(optax.clip_by_global_norm(most), optax.adam(rate)), {"rate": 0.01, "most": 0.7}),
        (jl.schedule_free_adamw, {"learning_rate": 0.01}),
    ],
    ids=["optax.adamw", "optax.sgd", "optax.lion", "clipped", "optax's, clipped", "schedule-free"],
)  # fmt: skip
def test_factories_of_others(make, values):
    with jax.numpy_dtype_promotion("standard"):  # as optax's rules ask for
        expected, _, _ = _steps(make(**values), 6)
        found, state, _ = _steps(jl.with_hyperparams(make, **values), 6)
    _close(found, expected)
    assert {name: float(jl.hyperparams(state)[name]) for name in values} == pytest.approx(values, rel=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_values_are_float32_whatever_the_parameters_are(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), _PARAMS)
    rule = jl.with_hyperparams(jl.adamw, learning_rate=3e-3, b2=0.999)
    found, state, _ = _steps(rule, 5, params)
    assert all(x.dtype == jnp.float32 for x in jl.hyperparams(state).values())
    _same(found, _steps(jl.adamw(3e-3, b2=0.999), 5, params)[0])


# --- setting ------------------------------------------------------------------------------------------


def test_twenty_changes_are_one_compile_and_equal_rules_built_with_the_values():
    rule = jl.with_hyperparams(jl.adamw, learning_rate=1e-2, b1=0.9)
    rates = np.linspace(1e-3, 3e-2, 20)

    def change(k, state):
        return jl.set_hyperparams(state, learning_rate=float(rates[k]), b1=0.8 if k > 9 else 0.9)

    found, state, traces = _steps(rule, 20, change=change)
    assert traces == 1
    params, kept = _PARAMS, jl.adamw(1e-2).init(_PARAMS)
    for k in range(20):
        built = jl.adamw(float(rates[k]), b1=0.8 if k > 9 else 0.9)
        params, kept, _ = _steps(built, 1, params, kept, first=k)
    _same(found, params)
    assert float(jl.hyperparams(state)["learning_rate"]) == np.float32(rates[-1])
    assert float(jl.learning_rate(state)) == np.float32(rates[-1])


_WRAPPED = {
    "stored": lambda rule, mesh: jl.stored(rule, mu=jl.int8(), nu=jl.int8()),
    "zero": lambda rule, mesh: jl.zero(rule, mesh, "data"),
    "zero of stored": lambda rule, mesh: jl.zero(jl.stored(rule, mu=jl.int8()), mesh, "data"),
    "accumulate": lambda rule, mesh: jl.accumulate(rule, 1),
    "guarded": lambda rule, mesh: jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1.0), rule)),
    "partition": lambda rule, mesh: jl.partition({"a": rule, "*": jl.sgd(0.1)}),
    "offload": lambda rule, mesh: jl.offload(rule),
    "ema": lambda rule, mesh: jl.ema_of_params(rule),
}


@pytest.mark.parametrize("name", _WRAPPED)
@pytest.mark.parametrize("how", ["update", "apply"])
def test_set_under_wrappers(name, how, mesh8):
    """Under each of them a value that is set gives the bits of a rule that was built with it."""
    wrap = _WRAPPED[name]
    turned = wrap(jl.with_hyperparams(jl.adamw, learning_rate=1e-3, weight_decay=0.1), mesh8)
    plain = wrap(jl.adamw(5e-3, weight_decay=0.1), mesh8)

    def after(rule, set_rate):
        params, state = _PARAMS, rule.init(_PARAMS)
        if set_rate:
            before = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
            state = jl.set_hyperparams(state, learning_rate=5e-3)
            assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == before
        if how == "apply":
            step = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p))
        else:

            @jax.jit
            def step(g, s, p):
                updates, s = rule.update(g, s, p)
                return optax.apply_updates(p, updates), s

        for k in range(4):
            params, state = step(_gradients(k), state, params)
        return params, state

    found, state = after(turned, True)
    _same(found, after(plain, False)[0])
    shown = jl.hyperparams(state)
    assert float((shown["a"] if name == "partition" else shown)["learning_rate"]) == np.float32(5e-3)


def test_set_under_pmap():
    rule = jl.zero(jl.with_hyperparams(jl.adamw, learning_rate=1e-3), axis_name="i")
    plain = jl.zero(jl.adamw(5e-3), axis_name="i")
    params = jl.replicate(_PARAMS)

    def after(rule, set_rate):
        p, state = params, jax.pmap(rule.init, axis_name="i")(params)
        state = jl.set_hyperparams(state, learning_rate=5e-3) if set_rate else state

        def own(g, s, p):
            updates, s = rule.update(g, s, p)
            return optax.apply_updates(p, updates), s

        step = jax.pmap(own, axis_name="i")
        for k in range(3):
            p, state = step(jl.replicate(_gradients(k)), state, p)
        return p, state

    found, state = after(rule, True)
    _same(found, after(plain, False)[0])
    assert jl.hyperparams(state)["learning_rate"].shape == (8,)


def test_eight_rates_by_vmap_are_one_compile():
    rule, rates = jl.with_hyperparams(jl.adamw, learning_rate=0.0), jnp.logspace(-4, -1, 8)
    state, traces = rule.init(_PARAMS), []
    states = jax.vmap(lambda rate: jl.set_hyperparams(state, learning_rate=rate))(rates)
    params = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), _PARAMS)

    @jax.jit
    @jax.vmap
    def step(state, params):
        traces.append(1)
        updates, state = rule.update(jax.tree.map(jnp.sin, params), state, params)
        return state, optax.apply_updates(params, updates)

    for _ in range(3):
        states, params = step(states, params)
    assert len(traces) == 1
    for n, rate in enumerate(rates):
        alone, kept = _PARAMS, jl.adamw(rate).init(_PARAMS)
        for _ in range(3):
            updates, kept = jax.jit(jl.adamw(rate).update)(jax.tree.map(jnp.sin, alone), kept, alone)
            alone = optax.apply_updates(alone, updates)
        jax.tree.map(
            lambda x, y, n=n: np.testing.assert_allclose(x[n], y, rtol=2e-6, atol=1e-7), params, alone
        )


def test_inside_jit_values_may_be_traced():
    rule = jl.with_hyperparams(jl.sgd, learning_rate=1.0)
    set_to = jax.jit(lambda state, rate: jl.set_hyperparams(state, learning_rate=rate))
    state = set_to(rule.init(_PARAMS), 0.5)
    assert float(jl.hyperparams(state)["learning_rate"]) == 0.5
    assert jax.tree.structure(state) == jax.tree.structure(rule.init(_PARAMS))


def test_a_leaf_that_was_put_there_by_hand_counts():
    """As with optax's: what was known of the number before is not taken for the new one."""
    rule = jl.with_hyperparams(jl.adamw, learning_rate=1e-3, b2=0.999)
    state = rule.init(_PARAMS)
    state.hyperparams["b2"] = jnp.float32(0.9)
    found, _, _ = _steps(rule, 4, state=state)
    expected, _, _ = _steps(jl.adamw(1e-3, b2=jnp.float32(0.9)), 4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)


def test_groups_have_their_own():
    adamw = {"learning_rate": 1e-3, "weight_decay": 0.1}
    rule = jl.partition(
        {
            "a": jl.with_hyperparams(jl.adamw, **adamw),
            "b*": optax.chain(
                jl.with_hyperparams(jl.clip_by_global_norm, max_norm=1.0), jl.with_hyperparams(jl.sgd, learning_rate=0.1)
            ),
        }
    )  # fmt: skip
    state = jl.skip_nonfinite(rule).init(_PARAMS)
    found = jl.hyperparams(state)
    assert set(found) == {"a", "b*"}
    assert set(found["b*"]) >= {"max_norm", "learning_rate"}
    state = jl.set_hyperparams(state, learning_rate={"b*": 0.2}, weight_decay=0.3)
    assert float(jl.hyperparams(state)["b*"]["learning_rate"]) == np.float32(0.2)
    assert float(jl.hyperparams(state)["a"]["learning_rate"]) == np.float32(1e-3)
    assert float(jl.hyperparams(state)["a"]["weight_decay"]) == np.float32(0.3)
    state = jl.set_hyperparams(state, learning_rate=0.5)
    assert {float(x) for x in jl.learning_rate(state).values()} == {0.5}
    assert jl.learning_rate(state).keys() == {"a", "b*"}


def test_two_of_a_name_in_a_chain_are_told_apart():
    rule = optax.chain(
        jl.with_hyperparams(jl.scale_by_adam, eps=1e-6), jl.with_hyperparams(jl.scale_by_yogi, eps=1e-3)
    )
    state = jl.set_hyperparams(rule.init(_PARAMS), **{"scale_by_adam.eps": 1e-5})
    found = jl.hyperparams(state)
    assert float(found["scale_by_adam.eps"]) == np.float32(1e-5)
    assert float(found["scale_by_yogi.eps"]) == np.float32(1e-3)


# --- schedules ----------------------------------------------------------------------------------------

_SCHEDULES = {
    "cosine": jl.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12, 0.01),
    "linear": jl.linear_schedule(0.1, 0.0, 7),
    "stable": jl.warmup_stable_decay(0.1, warmup_steps=3, stable_steps=5, decay_steps=4),
    "root": jl.inverse_sqrt(0.1, warmup_steps=4),
}


@pytest.mark.parametrize("name", _SCHEDULES)
def test_the_rate_of_the_last_step_exactly(name):
    """Of plain SGD with gradients of 1 the update is minus the rate."""
    schedule = _SCHEDULES[name]
    ones = {"w": jnp.ones(3)}
    for turned in (False, True):
        rule = jl.with_hyperparams(jl.sgd, learning_rate=schedule) if turned else jl.sgd(schedule)
        step, state = jax.jit(rule.update), rule.init(ones)
        for _ in range(15):
            updates, state = step(ones, state, ones)
            used = -float(updates["w"][0])
            assert float(jl.learning_rate(state)) == (used if turned else pytest.approx(used, rel=2e-7))


def test_schedules_drive_values_and_give_the_bits_of_the_rule_without():
    schedule = _SCHEDULES["cosine"]
    rule = jl.with_hyperparams(jl.adamw, learning_rate=schedule, b1=0.8)
    found, state, traces = _steps(rule, 8)
    _same(found, _steps(jl.adamw(schedule, b1=0.8), 8)[0])
    assert traces == 1
    assert float(jl.hyperparams(state)["learning_rate"]) == pytest.approx(float(schedule(7)), rel=1e-6)
    with pytest.raises(ValueError, match="learning_rate is given by a schedule"):
        jl.set_hyperparams(state, learning_rate=0.1)


def test_a_decay_may_have_a_schedule_too():
    rule = jl.with_hyperparams(jl.adamw, learning_rate=0.1, b1=lambda count: jnp.where(count > 2, 0.8, 0.9))
    _, state, _ = _steps(rule, 5)
    assert float(jl.hyperparams(state)["b1"]) == pytest.approx(0.8)


# --- kept and found again -----------------------------------------------------------------------------


def test_checkpoints_have_them_and_they_can_be_overridden(tmp_path, mesh8):
    rule = jl.zero(jl.with_hyperparams(jl.adamw, learning_rate=1e-2), mesh8, "data")
    params, state, _ = _steps(rule, 3, change=lambda k, s: jl.set_hyperparams(s, learning_rate=7e-3, b2=0.99))
    jl.save(tmp_path / "c", (params, state))
    mesh = make_mesh((2,), ("data",), devices=jax.devices()[:2])
    other = jl.zero(jl.with_hyperparams(jl.adamw, learning_rate=1e-2), mesh, "data")
    like = jax.device_put(_PARAMS, jax.sharding.NamedSharding(mesh, P()))
    params2, state2 = jl.restore(tmp_path / "c", (like, other.init(like)))
    assert float(jl.hyperparams(state2)["b2"]) == np.float32(0.99)
    more, _, _ = _steps(rule, 3, params, state)
    again, _, _ = _steps(other, 3, params2, state2)
    _same(again, more)
    turned = jl.set_hyperparams(state2, learning_rate=1e-3)
    assert float(jl.hyperparams(turned)["learning_rate"]) == np.float32(1e-3)


def test_states_are_pickled_and_everything_is_donated():
    rule = jl.with_hyperparams(jl.adamw, learning_rate=jl.linear_schedule(0.1, 0.0, 9))
    state = rule.init(_PARAMS)
    assert jax.tree.structure(pickle.loads(pickle.dumps(state))) == jax.tree.structure(state)
    step = jax.jit(lambda s, p: rule.update(p, s, p), donate_argnums=0)
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)
    step(state, _PARAMS)
    scheduled = jl.adamw(jl.linear_schedule(0.1, 0.0, 9)).init(_PARAMS)
    pickle.loads(pickle.dumps(scheduled))


def test_specs_of_a_state_are_known_before_it_is_made(mesh8):
    rule = jl.zero(jl.with_hyperparams(jl.adamw, learning_rate=1e-2), mesh8, "data")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((64, 64), x.dtype), _PARAMS)
    specs = jl.state_specs(rule, shapes)
    assert all(s == P() for s in jax.tree.leaves(jl.hyperparams(specs), is_leaf=lambda x: isinstance(x, P)))


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "expected"),
    [
        ({"learning_rate": -1.0}, ValueError, r"learning_rate is out of range, got -1.0; learning_rate must be a number >= 0"),
        ({"b1": 1.0}, ValueError, r"b1 is out of range, got 1.0; b1 must be a number in \[0, 1\)"),
        ({"b1": float("nan")}, ValueError, r"b1 is out of range, got nan"),
        ({"learning_rate": "fast"}, TypeError, r"learning_rate is not a number, got 'fast'"),
        ({"learning_rate": True}, TypeError, r"learning_rate is not a number, got True"),
        ({"rate": 0.1}, ValueError, r"there is no hyper-parameter 'rate'; the nearest are 'learning_rate'"),
        ({"mu_dtype": 0.1}, ValueError, r"there is no hyper-parameter 'mu_dtype'"),
        ({"learning_rate": jnp.ones(3)}, ValueError, r"learning_rate is not a scalar, got an array of shape \(3,\)"),
        ({"learning_rate": {"x": 0.1}}, ValueError, r"no group with learning_rate is 'x'"),
        ({"b1": 2.0, "b2": 2.0}, ValueError, r"b1 is out of range(.|\n)*b2 is out of range"),
    ],
)  # fmt: skip
def test_bad_values_raise_before_the_step_runs(values, error, expected):
    state = jl.with_hyperparams(jl.adamw, learning_rate=1e-3).init(_PARAMS)
    with pytest.raises(error, match=expected):
        jl.set_hyperparams(state, **values)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: jl.with_hyperparams(jl.adamw, rate=0.1), r"adamw has no hyper-parameter 'rate'; it has learning_rate, b1"),
        (lambda: jl.with_hyperparams(jl.adamw(0.1)), r"factory makes no rules, got Gradient"),
        (lambda: jl.with_hyperparams(jl.adamw, learning_rate=-0.1), r"learning_rate is out of range, got -0.1"),
        (lambda: jl.with_hyperparams(jl.adamw), r"learning_rate"),
        (lambda: jl.hyperparams(jl.adamw(0.1).init(_PARAMS)), r"the state has no hyper-parameters"),
        (lambda: jl.set_hyperparams(jl.adamw(0.1).init(_PARAMS), b1=0.5), r"the state has no hyper-parameters"),
        (lambda: jl.learning_rate(jl.adamw(0.1).init(_PARAMS)), r"no learning rate is in the state"),
        (
            lambda: jl.with_hyperparams(jl.adamw, learning_rate=0.1).update(
                _PARAMS, jl.with_hyperparams(jl.lion, learning_rate=0.1).init(_PARAMS), _PARAMS
            ),
            r"the state is of lion\(learning_rate, b1",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(make, expected):
    with pytest.raises((TypeError, ValueError), match=expected):
        make()


# --- compiles, as the runtime counts them -----------------------------------------------------------------


@pytest.fixture
def compiles():
    """How many programs were compiled so far."""
    from jax import monitoring

    seen = []

    def listen(name, *_, **__):
        if name.endswith("backend_compile_duration"):
            seen.append(name)

    monitoring.register_event_duration_secs_listener(listen)
    yield seen
    monitoring.clear_event_listeners()


@pytest.mark.parametrize("name", ["alone", "pmap", *_WRAPPED])
def test_nothing_is_compiled_anew(name, compiles, mesh8):
    """Neither where arrays are committed to devices nor where they are not."""
    rule = jl.with_hyperparams(jl.adamw, learning_rate=1e-3)
    if name == "pmap":
        step, params = jax.pmap(lambda g, s, p: jl.apply(rule, g, s, p)), jl.replicate(_PARAMS)
        state, grads = jax.pmap(rule.init)(params), jl.replicate(_gradients(0))
    else:
        rule = rule if name == "alone" else _WRAPPED[name](rule, mesh8)
        step, params, state, grads = (
            jax.jit(lambda g, s, p: jl.apply(rule, g, s, p)),
            _PARAMS,
            rule.init(_PARAMS),
            _gradients(0),
        )
    for _ in range(2):
        params, state = step(grads, state, params)
    jl.set_hyperparams(state, learning_rate=1.0)  # what setting itself compiles
    before = len(compiles)
    assert before > 0
    for k in range(20):
        state = jl.set_hyperparams(state, learning_rate=1e-3 * (k + 1))
        params, state = step(grads, state, params)
    assert len(compiles) == before


# --- factories of many kinds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "values", "names"),
    [
        (optax.ema, {"decay": 0.9}, {"decay"}),
        (optax.trace, {"decay": 0.9}, {"decay"}),
        (optax.clip, {"max_delta": 1.0}, {"max_delta"}),
        (optax.add_decayed_weights, {"weight_decay": 0.1}, {"weight_decay"}),
        (optax.contrib.schedule_free_adamw, {"learning_rate": 0.1}, {"learning_rate", "b1", "b2"}),
        (functools.partial(optax.adamw, b1=0.8), {"learning_rate": 0.1}, {"learning_rate", "b2"}),
        (functools.partial(jl.adamw, b1=0.8), {"learning_rate": 0.1}, {"learning_rate", "b2"}),
        (lambda rate, every=2: jl.accumulate(jl.sgd(rate), every), {"rate": 0.1}, {"rate"}),
        (lambda rate, mask=lambda p: True: jl.adamw(rate, mask=mask), {"rate": 0.1}, {"rate"}),
        (jl.sgd, {"learning_rate": np.float32(0.1), "momentum": 1 / 2}, {"learning_rate", "momentum"}),
        (jl.sgd, {"learning_rate": jnp.float32(0.1)}, {"learning_rate"}),
        (jl.gradient_descent, {"learning_rate": 1}, {"learning_rate"}),
    ],
)
def test_which_arguments_turn(make, values, names):
    with jax.numpy_dtype_promotion("standard"):
        rule = jl.with_hyperparams(make, **values)
        state = rule.init(_PARAMS)
        found = jl.hyperparams(state)
        assert names <= set(found)
        assert "b1" not in found or not isinstance(make, functools.partial)
        updates, _ = jax.jit(rule.update)(_gradients(0), state, _PARAMS)
        expected, _ = jax.jit(make(**values).update)(_gradients(0), make(**values).init(_PARAMS), _PARAMS)
        _close(updates, expected)


def test_what_cannot_be_decided_is_said():
    for make in (
        lambda rate, wd=0.0: jl.adamw(rate, weight_decay=wd) if wd else jl.adam(rate),
        lambda rate, n=2.0: jl.sgd(rate, momentum=float(n) / 4),
    ):
        with pytest.raises(
            TypeError, match="a number that turns is in the state, and not known while the rule is made"
        ):
            jl.with_hyperparams(make, rate=0.1).init(_PARAMS)
    with pytest.raises(ValueError, match="has no number that could turn"):
        jl.with_hyperparams(lambda every=2: jl.sgd(0.1))
    with pytest.raises(TypeError, match="has arguments without a name, got rates"):
        jl.with_hyperparams(lambda *rates: jl.sgd(rates[0]), 0.1)
    with pytest.raises(
        ValueError, match=r"learning_rate is out of range, got 1e\+300; at most 3.402823e\+38"
    ):
        jl.set_hyperparams(jl.with_hyperparams(jl.sgd, 0.1).init(_PARAMS), learning_rate=1e300)


def test_two_of_a_kind_in_a_chain():
    rule = optax.chain(jl.with_hyperparams(jl.sgd, 0.5), jl.with_hyperparams(jl.sgd, 0.25))
    state = jl.set_hyperparams(rule.init(_PARAMS), **{"sgd.learning_rate#2": 0.125})
    found = jl.hyperparams(state)
    assert (float(found["sgd.learning_rate"]), float(found["sgd.learning_rate#2"])) == (0.5, 0.125)


def test_a_groups_own_name_comes_before_globs():
    groups = {"b": jl.with_hyperparams(jl.sgd, 0.1), "*": jl.with_hyperparams(jl.sgd, 0.5)}
    state = jl.set_hyperparams(jl.partition(groups).init(_PARAMS), learning_rate={"*": 0.25})
    found = jl.hyperparams(state)
    assert float(found["b"]["learning_rate"]) == np.float32(0.1)
    assert float(found["*"]["learning_rate"]) == 0.25
