"""Every rule inside every wrapper: 8-bit state, accumulation, groups, checkpoints on another mesh, complex leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_large as jl

from ..catalog import RULES, bits_of, every_rule, in_turn, like

P = PartitionSpec
# copies of parameters, of which 8 bits would move the parameters themselves; step sizes that grow without bound
NOT_IN_8_BITS = {"x0", "init_params", "params0", "init_particles", "ax", "step_sizes"}


def _blocks(case):
    return [name for name in dict.fromkeys(case.fields) if name not in NOT_IN_8_BITS]


def _trained(rule, steps=20):
    """A noisy quadratic from large parameters on: [64, 128], and a bias."""
    r = np.random.default_rng(0)
    start = {"w": jnp.asarray(r.normal(size=(64, 128)), jnp.float32), "b": jnp.ones(128)}
    noise = [like(start, seed, 0.3) for seed in range(steps)]

    @jax.jit
    def step(params, state, noise):
        grads = jax.tree.map(lambda p, n: p + n, params, noise)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, rule.init(start)
    for n in noise:
        params, state = step(params, state, n)
    return start["w"], params["w"]


@every_rule
def test_state_in_8_bits(case):
    fields = _blocks(case)
    if not fields:
        pytest.skip("it keeps nothing like the parameters")
    start, exact = _trained(case.rule())
    _, stored = _trained(jl.stored(case.rule(), **dict.fromkeys(fields, jl.int8())))
    way = float(jnp.linalg.norm(exact - start))
    assert float(jnp.linalg.norm(stored - exact)) < 0.1 * way, case.name


@in_turn("case", RULES, "mode", ["zero", "alone"])
def test_accumulated_gradients(case, mode, mesh8):
    """Two halves of a gradient are the gradient."""
    case.skip_if("obj_fn")
    params = {"w": jnp.linspace(-1.0, 1.0, 128).reshape(8, 16)}
    plain, halves = case.rule(), jl.accumulate(case.rule(), 2)
    if mode == "zero":
        params = jax.device_put(params, NamedSharding(mesh8, P()))
        halves = jl.zero(halves, mesh8, "data", min_bytes=0)
    a, b, p, q = plain.init(params), halves.init(params), params, params
    step, half = jax.jit(plain.update), jax.jit(halves.update)
    for seed in range(2):
        grads, off = like(params, seed), like(params, seed + 10, 0.25)
        u, a = step(grads, a, p)
        p = optax.apply_updates(p, u)
        for sign in (1.0, -1.0):
            u, b = half(jax.tree.map(lambda g, o, s=sign: g + s * o, grads, off), b, q)
            q = optax.apply_updates(q, u)
    np.testing.assert_allclose(q["w"], p["w"], rtol=1e-4, atol=1e-5)


@every_rule
def test_in_a_group(case):
    """A group's rule sees its own leaves only."""
    params = {"body": {"w": jnp.linspace(-1.0, 1.0, 24).reshape(4, 6)}, "head": jnp.ones(3)}
    rule = jl.partition({"head": jl.sgd(0.1), "*": case.rule()})
    alone, own = case.rule(), {"w": params["body"]["w"]}
    state, expected = rule.init(params), alone.init(own)
    for seed in range(2):
        grads = like(params, seed)
        updates, state = rule.update(grads, state, params)
        wanted, expected = alone.update({"w": grads["body"]["w"]}, expected, own)
        if case.notes & {"random", "obj_fn"}:
            assert updates["body"]["w"].shape == (4, 6)
            continue
        np.testing.assert_allclose(updates["body"]["w"], wanted["w"], rtol=1e-6, atol=1e-8)


@in_turn("case", RULES, "devices", [4, 2])
def test_a_checkpoint_goes_on_on_another_mesh(case, devices, tmp_path, mesh8):
    params = jax.device_put({"w": jnp.linspace(-1.0, 1.0, 256).reshape(16, 16)}, NamedSharding(mesh8, P()))
    rule = jl.zero(case.rule(), mesh8, "data", min_bytes=0)
    updates, state = rule.update(like(params, 0), rule.init(params), params)
    params = optax.apply_updates(params, updates)
    jl.save(tmp_path / "c", {"params": params, "state": state})
    mesh = jax.make_mesh(
        (devices,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    fewer = jl.zero(case.rule(), mesh, "data", min_bytes=0)
    placed = jax.device_put(params, NamedSharding(mesh, P()))
    back = jl.restore(tmp_path / "c", {"params": placed, "state": fewer.init(placed)})
    one, _ = rule.update(like(params, 1), state, params)
    other, _ = fewer.update(like(placed, 1), back["state"], back["params"])
    np.testing.assert_allclose(np.asarray(other["w"]), np.asarray(one["w"]), rtol=1e-5, atol=1e-7)
    assert bits_of(back["params"]["w"]) == bits_of(params["w"])


REAL_ONLY = ("cocob", "sophia")


@every_rule
def test_complex_parameters(case):
    """Turned by a phase, gradients and parameters give updates turned by it; they are as long as real ones are."""
    case.skip_if("random", "value")
    if case.name in REAL_ONLY:
        pytest.skip("its arithmetic is of real numbers")
    start = jnp.linspace(-1.0, 1.0, 24).reshape(4, 6)
    phase = jnp.exp(jnp.complex64(0.7j))
    real, turned = case.rule(), case.rule()
    p, q = start, phase * start.astype(jnp.complex64)
    a, b = real.init(p), turned.init(q)
    for seed in range(3):
        g = like(start, seed)
        u, a = real.update(g, a, p)
        v, b = turned.update(phase * g.astype(jnp.complex64), b, q)
        assert v.dtype == jnp.complex64
        np.testing.assert_allclose(v, phase * u.astype(jnp.complex64), rtol=2e-4, atol=2e-6)
        p, q = p + u, q + v
