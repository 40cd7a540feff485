"""Kernels on what each device has: Auto and Explicit axes, shard_map, pmap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large.fused._step import Step, step_of

from ..catalog import in_turn
from .cases import arrays


def _inner(**options):
    return jl.stored(jl.adamw(1e-2), mu=jl.int8(), nu=jl.int8(), **options)


def _values():
    return {
        "w": arrays((64, 1024), jnp.float32, 0),
        "v": arrays((2, 16, 384), jnp.float32, 1),
        "b": jnp.ones(24),
    }


def _grads(seed):
    return {k: arrays(p.shape, jnp.float32, (seed, ord(k))) for k, p in _values().items()}


def _close(got, want):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        if np.issubdtype(x.dtype, np.integer):  # a code, of which the last bit of a number may decide
            assert np.max(np.abs(x.astype(int) - y.astype(int))) <= 1
            assert np.mean(x != y) < 1e-3
        else:
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def _calls(step, *args):
    return str(jax.make_jaxpr(step)(*args)).count("pallas_call")


@in_turn(
    "placement",
    ["zero", "zero over fsdp", "fsdp"],
    "kind",
    [AxisType.Auto, AxisType.Explicit],
    left=("zero",),
)
def test_on_a_mesh(kind, placement):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    rule = _inner() if placement == "fsdp" else jl.zero(_inner(), mesh, "data")
    spec = P() if placement == "zero" else P(None, "model")
    with jax.set_mesh(mesh):
        where = {k: NamedSharding(mesh, spec if k == "w" else P()) for k in _values()}
        params, grads = jax.device_put(_values(), where), jax.device_put(_grads(1), where)
        state = jl.init_state(rule, params)
        found = {}
        for kernels in ("xla", "interpret"):
            step = jax.jit(functools.partial(jl.apply, rule, kernels=kernels))
            carry = (params, state)
            for _ in range(2):
                carry = jax.block_until_ready(step(grads, carry[1], carry[0]))
            found[kernels] = carry
            ran = _calls(step, grads, state, params)
            # among Auto axes nothing but zero tells where arrays lie: they are taken to be whole
            assert ran == (0 if kernels == "xla" else 2)
        _close(found["interpret"], found["xla"])
        for k, x in found["interpret"][0].items():
            assert x.sharding.is_equivalent_to(where[k], x.ndim), k
        for x, y in zip(jax.tree.leaves(found["interpret"][1]), jax.tree.leaves(state), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


@pytest.mark.compat
@in_turn(
    "way", ["pmap", "shard_map", "shard_map typed"], "kernels", ["auto", "interpret"], left=("shard_map",)
)
def test_in_mapped_axes(way, kernels, mesh8):
    values, rule = _values(), jl.zero(_inner(), axis_name="data")
    want = jl.apply(_inner(), _grads(1), _inner().init(values), values)
    step = functools.partial(jl.apply, rule, kernels=kernels)
    if way == "pmap":
        params, grads = jl.replicate(values), jl.replicate(_grads(1))
        state = jax.pmap(rule.init, axis_name="data")(params)
        params, state = jax.block_until_ready(jax.pmap(step, axis_name="data")(grads, state, params))
        _close((jl.unreplicate(params), jl.to_global(state)), want)
        return
    options = {"mesh": mesh8, "check_vma": way.endswith("typed")}
    specs = jl.mapped_state_specs(rule, values, {"data": 8})
    state = jax.jit(jax.shard_map(rule.init, in_specs=P(), out_specs=specs, **options))(values)
    step = jax.jit(jax.shard_map(step, in_specs=(P(), specs, P()), out_specs=(P(), specs), **options))
    if kernels == "interpret":
        assert _calls(step, _grads(1), state, values) == (0 if options["check_vma"] else 2)
    params, state = jax.block_until_ready(step(_grads(1), state, values))
    _close((params, state.inner), want)


def test_a_gathered_update_is_handed_on_and_not_computed_again(mesh8):
    rule, values = jl.zero(_inner(), axis_name="data"), _values()
    specs = jl.mapped_state_specs(rule, values, {"data": 8})
    options = {"mesh": mesh8, "check_vma": False}
    state = jax.jit(jax.shard_map(rule.init, in_specs=P(), out_specs=specs, **options))(values)
    found = []

    def step(grads, state, params):
        taken = Step.taken(step_of(rule, {}), (grads, state, params))
        found.append(taken)
        return taken.run((grads, state, params), "xla")

    run = jax.shard_map(step, in_specs=(P(), specs, P()), out_specs=(P(), specs), **options)
    plain = jax.shard_map(step_of(rule, {}), in_specs=(P(), specs, P()), out_specs=(P(), specs), **options)
    texts = [str(jax.make_jaxpr(f)(_grads(1), state, values)) for f in (run, plain)]
    handed = [p for p in found[-1].split.passes if any(k < 0 for k in p.results)]
    assert len(handed) == 2
    assert all(p.has_blocks for p in handed)
    once, wanted = (text.count("name=jaxopt_large_decode_int8") for text in texts)
    assert once == wanted == 4  # two fields of two leaves


def test_what_the_mesh_divides_badly_is_left_to_xla():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = {
            "w": jax.device_put(arrays((64, 512), jnp.float32, 0), NamedSharding(mesh, P(None, "data")))
        }
        step = functools.partial(jl.apply, _inner(), kernels="interpret")
        state = jl.init_state(_inner(), params)
        assert _calls(step, params, state, params) == 0
