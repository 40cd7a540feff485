"""What updates must not depend on: the order of coordinates, the gradient's scale, the axes of the space."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ..catalog import RULES, every_rule, in_turn

# without eps, or what else has the gradient's units
SCALE_FREE = {
    "adam": {"eps": 0.0},
    "adamw": {"eps": 0.0},
    "nadam": {"eps": 0.0},
    "nadamw": {"eps": 0.0},
    "amsgrad": {"eps": 0.0},
    "amsgradw": {"eps": 0.0},
    "adamax": {"eps": 0.0},
    "adamaxw": {"eps": 0.0},
    "adabelief": {"eps": 0.0, "eps_root": 0.0},
    "yogi": {"eps": 0.0, "initial_accumulator_value": 0.0},
    "adan": {"eps": 0.0, "eps_root": 0.0},
    "adopt": {"eps": 1e-30},
    "ademamix": {"eps": 0.0},
    "simplified_ademamix": {"eps": 0.0},
    "laprop": {"eps": 0.0},
    "stable_adamw": {"eps": 1e-30},
    "adam_mini": {"eps": 0.0},
    "adafactor": {"eps": 0.0},
    "came": {"eps": 1e-60},
    "rmsprop": {"eps": 0.0},
    "adagrad": {"eps": 0.0, "initial_accumulator_value": 0.0},
    "lion": {},
    "sign_sgd": {},
    "signum": {},
    "rprop": {},
    "lamb": {"eps": 0.0},
    "lars": {"weight_decay": 0.0, "momentum": 0.0},
    "novograd": {"eps": 0.0},
    "fromage": {"min_norm": 0.0},
    "cocob": {"eps": 1e-30},
    "dog": {"eps": 0.0, "weight_decay": None},
    "dadapt_adamw": {"eps": 0.0},
    "prodigy": {"eps": 0.0},
    "optimistic_adam": {"eps": 0.0},
    "optimistic_adam_v2": {"eps": 0.0},
}
ROTATED = ("gradient_descent", "sgd", "optimistic_gradient_descent", "polyak_sgd", "dog", "dowg", "asgd")
NAMES = {str(case): case for case in RULES}


def _moved(rule, start, grads):
    """The parameters after each step."""

    def step(carry, g):
        params, state = carry
        updates, state = rule.update(g, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    return np.asarray(jax.jit(lambda p, g: jax.lax.scan(step, (p, rule.init(p)), g)[1])(start, grads))


def _problem(seed=0, steps=20):
    r = np.random.default_rng(seed)
    return jnp.asarray(r.normal(size=(6, 9))), jnp.asarray(r.normal(size=(steps, 6, 9)))


@every_rule
def test_coordinates_have_no_order(case, x64):
    """Rows and columns in another order move as they did."""
    start, grads = _problem()
    rows, columns = (np.random.default_rng(1).permutation(n) for n in start.shape)
    plain = _moved(case.rule(), start, grads)
    turned = _moved(case.rule(), start[rows][:, columns], grads[:, rows][:, :, columns])
    np.testing.assert_allclose(turned, plain[:, rows][:, :, columns], rtol=1e-9, atol=1e-10)


@in_turn("name", list(SCALE_FREE), "scale", [1e-6, 1e6])
def test_the_gradients_scale_does_not_matter(name, scale, x64):
    start, grads = _problem()
    rule = NAMES[name].rule(**SCALE_FREE[name])
    np.testing.assert_allclose(
        _moved(rule, start, scale * grads), _moved(rule, start, grads), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("name", ROTATED)
def test_rotated_gradients_rotate_the_steps(name, x64):
    start, grads = _problem()
    turn = jnp.asarray(np.linalg.qr(np.random.default_rng(2).normal(size=(9, 9)))[0])
    plain = _moved(NAMES[name].rule(), start, grads)
    np.testing.assert_allclose(
        _moved(NAMES[name].rule(), start @ turn, grads @ turn), plain @ turn, rtol=1e-9, atol=1e-9
    )


@every_rule
def test_without_gradient_and_decay_nothing_moves(case):
    settings = {name: 0.0 for name in case.settings if name == "weight_decay"}
    settings |= {"lambd": 0.0} if case.name == "asgd" else {}
    start = jnp.ones((4, 6))
    rule = case.rule(**settings)
    state, expected = rule.init(start), start
    for _ in range(3):
        updates, state = rule.update(jnp.zeros((4, 6)), state, expected)
        if case.name == "fromage":  # it turns each leaf by an angle, along no gradient inwards
            assert bool(jnp.all(updates < 0))
            return
        assert not np.any(np.asarray(updates)), updates


@in_turn("case", RULES, "dtype", ["bfloat16", "float16"])
def test_gradients_of_any_size_in_low_precision(case, dtype):
    """Zero, the least and the largest there is, and back: finite throughout; NaN shows, and is forgotten or kept."""
    most, least = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).tiny)
    rule, params = case.rule(), {"w": jnp.ones((3, 4), dtype)}
    state, update = rule.init(params), jax.jit(rule.update)
    for size in (0.0, least, most, 0.0, 1.0):
        grads = {"w": jnp.full((3, 4), size, dtype)}
        updates, state = update(grads, state, params)
        if size < most:  # the step itself may be beyond the dtype
            assert bool(jnp.all(jnp.isfinite(updates["w"]))), size
        assert all(
            bool(jnp.all(jnp.isfinite(x)))
            for x in jax.tree.leaves(state)
            if jnp.issubdtype(x.dtype, jnp.floating)
        ), size
    updates, _ = update({"w": jnp.full((3, 4), jnp.nan, dtype)}, state, params)
    assert case.name in ("rprop", "adopt") or bool(jnp.all(jnp.isnan(updates["w"])))
