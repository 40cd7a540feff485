"""Wrappers against NumPy in float64, written from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

_STEPS = 30


def _problem():
    r = np.random.default_rng(3)
    return r.normal(size=(4, 6)), r.normal(size=(_STEPS, 4, 6))


def _moved(rule, start, grads, **extra):
    def step(carry, g):
        params, state = carry
        updates, state = rule.update(g, state, params, **extra)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    run = jax.jit(lambda p, g: jax.lax.scan(step, (p, rule.init(p)), g))
    (params, state), seen = run(jnp.asarray(start), jnp.asarray(grads))
    return np.asarray(seen), params, state


def _momentum(grads, rate=0.1, decay=0.9):
    v = 0.0
    for g in grads:
        v = decay * v + g
        yield -rate * v


def test_cautious(x64):
    start, grads = _problem()
    p, expected = start, []
    for g, u in zip(grads, _momentum(grads), strict=True):
        mask = u * g < 0
        p = p + u * mask / max(mask.mean(), 1e-3)
        expected.append(p)
    seen, *_ = _moved(jl.cautious(jl.sgd(0.1, momentum=0.9)), start, grads)
    np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-12)
    tiny, *_ = _moved(jl.cautious(jl.sgd(0.1, momentum=0.9)), 0 * start, 1e-30 * grads)
    assert np.any(tiny != 0)


@pytest.mark.parametrize("cautious", [False, True])
def test_decoupled(cautious, x64):
    start, grads = _problem()
    p, expected = start, []
    for t, (g, u) in enumerate(zip(grads, _momentum(grads), strict=True)):
        decay = 0.1 / (1 + t) * 0.5 * p
        p = p + u - (decay * (u * p < 0) if cautious else decay)
        expected.append(p)
        del g
    rule = jl.decoupled(
        jl.sgd(0.1, momentum=0.9),
        lambda t: 0.1 / (1 + t.astype(jnp.float64)),
        learning_rate=0.5,
        cautious=cautious,
    )
    np.testing.assert_allclose(_moved(rule, start, grads)[0], expected, rtol=1e-12, atol=1e-12)


def test_lookahead(x64):
    start, grads = _problem()
    fast, slow, expected = start, start, []
    for t, u in enumerate(_momentum(grads), start=1):
        fast = fast + u
        if t % 4 == 0:
            slow = slow + 0.3 * (fast - slow)
            fast = slow
        expected.append(fast)
    seen, params, state = _moved(jl.lookahead(jl.sgd(0.1, momentum=0.9), 4, 0.3), start, grads)
    np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(jl.evaluation_params(state, params), slow, rtol=1e-12)


def test_ema_of_params(x64):
    start, grads = _problem()
    p, mean = start, 0.0
    for u in _momentum(grads):
        p = p + u
        mean = 0.8 * mean + 0.2 * p
    rule = jl.ema_of_params(jl.sgd(0.1, momentum=0.9), 0.8)
    seen, params, state = _moved(rule, start, grads)
    np.testing.assert_allclose(seen[-1], p, rtol=1e-12)
    np.testing.assert_allclose(jl.evaluation_params(state, params), mean / (1 - 0.8**_STEPS), rtol=1e-12)
    fresh = rule.init(jnp.asarray(start))
    np.testing.assert_allclose(jl.evaluation_params(fresh, jnp.asarray(start)), start)


@pytest.mark.parametrize("b1", [0.9, 0.0])
def test_schedule_free(b1, x64):
    start, grads = _problem()
    x, z, y, weights, most, expected = start, start, start, 0.0, 0.0, []
    for t, g in enumerate(grads):
        rate = 0.1 * min(1.0, (t + 1) / 10)
        z = z - rate * g
        most = max(most, rate)
        weights += most**2
        x = x + most**2 / weights * (z - x)
        y = b1 * x + (1 - b1) * z
        expected.append(y)
    seen, params, state = _moved(jl.schedule_free_sgd(0.1, 10, b1), start, grads)
    np.testing.assert_allclose(seen, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(jl.evaluation_params(state, params), x if b1 else z, rtol=1e-10)
    np.testing.assert_allclose(jl.schedule_free_eval_params(state, params), x if b1 else z, rtol=1e-10)


@pytest.mark.parametrize("adaptive", [False, True])
def test_sam(adaptive, x64):
    start, _ = _problem()
    scales = np.linspace(0.5, 2.0, start.size).reshape(start.shape)
    p, expected = start, []
    for _ in range(_STEPS):
        g = scales * p
        e = p**2 * g / np.linalg.norm(p * g) if adaptive else g / np.linalg.norm(g)
        p = p - 0.1 * scales * (p + 0.05 * e)
        expected.append(p)
    rule = jl.sam(jl.sgd(0.1), adaptive=adaptive)
    state, params, seen = rule.init(jnp.asarray(start)), jnp.asarray(start), []
    for _ in range(_STEPS):
        updates, state = rule.update(scales * params, state, params, grad_fn=lambda q: scales * q)
        params = params + updates
        seen.append(params)
    np.testing.assert_allclose(seen, expected, rtol=1e-12, atol=1e-12)


def test_mechanic(x64):
    """Cutkosky et al. 2023, algorithm 1."""
    start, grads = _problem()
    n, eps, first, weight = 6, 1e-8, 1e-2, 0.01
    betas = 1 - 0.1 ** np.arange(1, n + 1)
    r, m, v, s = np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, first)
    p, delta, expected = start, np.zeros_like(start), []
    for g, u in zip(grads, _momentum(grads), strict=True):
        known = (p - start) / (s.sum() + eps)
        decayed = g + weight * s.sum() * np.linalg.norm(g) / (np.linalg.norm(p) + eps) * p
        h = -np.sum(decayed * known)
        r = betas * r + np.clip(h, -m, m) * s
        m, v = np.maximum(betas * m, abs(h) + eps), betas**2 * v + h**2
        s = (first / n * m + np.maximum(0, r)) / (np.sqrt(v) + eps)
        delta = known + u
        p = start + s.sum() * delta
        expected.append(p)
    seen, *_ = _moved(jl.mechanic(jl.sgd(0.1, momentum=0.9), s_init=first), start, grads)
    np.testing.assert_allclose(seen, expected, rtol=1e-9, atol=1e-11)


def test_mechanic_survives_what_is_huge_or_broken():
    params = jnp.array([1.0, -2.0, 3.0])
    rule = jl.mechanic(jl.skip_nonfinite(jl.adam(0.1)))
    state = rule.init(params)
    for scale in (1.0, jnp.nan, 1.0, 1e20, 1.0):
        updates, state = rule.update(scale * params, state, params)
        params = params + updates
        assert bool(jnp.all(jnp.isfinite(params))), scale
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(state.s))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_mechanic_follows_float32_where_parameters_round(dtype):
    """Scales of 1e-6 move nothing in bfloat16; the sum of what they would have moved is in the state."""
    goal = jnp.linspace(-2.0, 3.0, 16)
    rule = jl.mechanic(jl.adam(1.0))

    @jax.jit
    def step(params, state):
        grads = {k: 2 * (x - goal.astype(x.dtype)) for k, x in params.items()}
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def moved(dtype):
        params = {"w": jnp.ones(16, dtype)}
        state = rule.init(params)
        for _ in range(200):
            params, state = step(params, state)
        return params["w"].astype(jnp.float32), state.delta["w"]

    (whole, none), (rounded, delta) = moved(jnp.float32), moved(dtype)
    assert none is None
    assert delta.dtype == jnp.float32
    np.testing.assert_allclose(whole, goal, atol=0.02)
    np.testing.assert_allclose(rounded, goal, atol=0.06)


@pytest.mark.parametrize("kept", [jl.rounded, jl.split])
def test_mechanic_follows_float32_in_stored_parameters(kept):
    """They are not what the rule has made of them."""
    goal = jnp.linspace(-2.0, 3.0, 128)[None] * jnp.ones((32, 1))
    rule, params = (
        jl.stored(jl.mechanic(jl.adam(1.0)), params=kept()),
        {"w": jnp.ones((32, 128), jnp.bfloat16)},
    )
    state = rule.init(params)

    @jax.jit
    def step(params, state):
        grads = {"w": 2 * (params["w"] - goal.astype(jnp.bfloat16))}
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):  # updates are float32
        for _ in range(200):
            params, state = step(params, state)
    assert float(jnp.mean(jnp.square(params["w"].astype(jnp.float32) - goal))) < 1e-3


def test_mechanic_needs_parameters():
    with pytest.raises(ValueError, match="mechanic: params are needed"):
        jl.mechanic(jl.sgd(1.0)).update(jnp.ones(2), jl.mechanic(jl.sgd(1.0)).init(jnp.ones(2)))


@pytest.mark.parametrize("around", [jl.cautious, jl.lookahead, jl.ema_of_params, jl.mechanic])
def test_accumulation_belongs_outside(around):
    with pytest.raises(ValueError, match=r"accumulate is inside .* Write accumulate\(cautious"):
        around(jl.accumulate(jl.sgd(0.1), 2)).init(jnp.ones(3))
    jl.accumulate(around(jl.sgd(0.1)), 2).init(jnp.ones(3))
