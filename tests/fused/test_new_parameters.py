"""What `apply` under `zero` sends: new parameters in their dtype, large stacks layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large.fused import _dispatch
from jaxopt_large.placement import _gathered

_SPECS = {
    "replicated": {"layers": P(), "embed": P(), "norm": P()},
    "tensor": {"layers": P(None, None, "model"), "embed": P("model"), "norm": P()},
    "fsdp": {"layers": P(None, "data", "model"), "embed": P(("model", "data")), "norm": P()},
}


def _mesh():
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def _arrays(mesh, specs, dtype, seed=0):
    shapes = {"layers": (6, 256, 512), "embed": (512, 256), "norm": (6, 256)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.device_put(jax.random.normal(key, shape, dtype), NamedSharding(mesh, _SPECS[specs][name]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def _compiled(rule, params, grads):
    state = jl.init_state(rule, params)
    places = jax.tree.map(lambda x: x.sharding, (params, state))

    @functools.partial(jax.jit, donate_argnums=(0, 1), out_shardings=places)
    def step(params, state, grads):
        return jl.apply(rule, grads, state, params)

    return state, step.lower(params, state, grads).compile()


def _rule(mesh, *, stored=False, layers=None):
    rule = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-2))
    if stored:
        rule = jl.stored(rule, params=jl.split(), mu=jl.int8(), nu=jl.int8())
    return jl.zero(rule, mesh, "data", layers=layers)


def _gathering(monkeypatch, by_layers):
    monkeypatch.setattr(_gathered, "BY_LAYERS", 1 if by_layers else 2**40)
    monkeypatch.setattr(_gathered, "LEAST", 2**14)


def test_rows_are_no_layers(monkeypatch):
    """An embedding of which the columns are divided is gathered at once, not 50,257 times."""
    monkeypatch.setattr(_gathered, "BY_LAYERS", 1)
    mesh = _mesh()
    sharding = NamedSharding(mesh, P())
    params = {"embed": jax.device_put(jnp.ones((1009, 256)), sharding)}
    _, step = _compiled(_rule(mesh), params, params)
    assert {c.rounds for c in jl.plan.collectives(step)} == {1}


@pytest.mark.parametrize("by_layers", [False, True])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("specs", ["replicated", "tensor"])
def test_parameters_are_sent_once_in_their_dtype(specs, stored, by_layers, monkeypatch):
    _gathering(monkeypatch, by_layers)
    mesh = _mesh()
    dtype = jnp.bfloat16 if stored else jnp.float32
    params, grads = (_arrays(mesh, specs, dtype, seed) for seed in (0, 1))
    _, step = _compiled(_rule(mesh, stored=stored, layers="layers"), params, grads)
    found = jl.plan.collectives(step)
    # what one device has of each parameter that is divided; `norm` is too small to be
    sent = sum(params[name].addressable_shards[0].data.nbytes for name in ("layers", "embed"))
    gathers = [c for c in found if c.kind == "all-gather" and c.bytes * c.rounds >= 2**12]
    # CPUs send 16 bits as 32; of codes and scales nothing is sent
    assert sum(c.bytes * c.rounds for c in gathers) in (sent, sent * 4 // dtype.dtype.itemsize)
    assert {c.rounds for c in gathers} == ({1, 6} if by_layers else {1})
    assert found.bytes("all-reduce") < 2**8
    assert not found.count("all-to-all")


@pytest.mark.parametrize("stored", [False, True])
def test_what_is_divided_already_is_not_sent(stored):
    mesh = _mesh()
    dtype = jnp.bfloat16 if stored else jnp.float32
    params, grads = (_arrays(mesh, "fsdp", dtype, seed) for seed in (0, 1))
    _, step = _compiled(_rule(mesh, stored=stored, layers="layers"), params, grads)
    assert jl.plan.collectives(step).bytes() < 2**8  # the norm's


@pytest.mark.parametrize("by_layers", [False, True])
@pytest.mark.parametrize("specs", list(_SPECS))
@pytest.mark.parametrize("stored", [False, True])
def test_numbers_are_those_of_update(specs, stored, by_layers, monkeypatch):
    _gathering(monkeypatch, by_layers)
    mesh = _mesh()
    dtype = jnp.bfloat16 if stored else jnp.float32
    rule = _rule(mesh, stored=stored)
    params, grads = (_arrays(mesh, specs, dtype, seed) for seed in (0, 1))

    @jax.jit
    def as_written(params, state, grads):
        updates, state = rule.update(grads, state, params)
        with jax.numpy_dtype_promotion("standard"):
            return optax.apply_updates(params, updates), state

    expected = as_written(params, rule.init(params), grads)
    state, step = _compiled(rule, params, grads)
    layouts = jax.tree.map(lambda x: x.sharding, params)
    made = step(params, state, grads)
    assert jax.tree.map(lambda x: x.sharding, made[0]) == layouts
    # the sum of a parameter and its change may be rounded once where it was twice: nothing stands between
    last_bit = 0 if stored else 2.4e-7
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        one, other = (np.asarray(x).astype(np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=0, atol=last_bit)


@pytest.mark.parametrize(
    "around",
    [
        lambda rule: jl.ema_of_params(rule, 0.9),
        lambda rule: jl.lookahead(rule, sync_period=2, slow_step_size=0.5),
        lambda rule: jl.schedule_free(rule, 1e-2, b1=0.9),
        jl.skip_nonfinite,
    ],
    ids=["ema_of_params", "lookahead", "schedule_free", "skip_nonfinite"],
)
def test_averages_outside_of_zero_cost_no_second_gather(around):
    mesh = _mesh()
    params, grads = (_arrays(mesh, "replicated", jnp.float32, seed) for seed in (0, 1))
    _, step = _compiled(around(_rule(mesh)), params, grads)
    sent = sum(params[name].nbytes for name in ("layers", "embed"))
    assert jl.plan.collectives(step).bytes("all-gather") <= sent + 2**14


def test_stacks_that_no_kernel_takes(monkeypatch):
    """Layer by layer, on one device's part of them: the numbers are XLA's, but for a last bit."""
    monkeypatch.setattr(_dispatch, "_BY_LAYERS", 1)
    monkeypatch.setattr(_dispatch, "_why_no_kernel", lambda *_: "not here")
    ran = []
    by_layers = _dispatch._by_layers
    monkeypatch.setattr(_dispatch, "_by_layers", lambda *a, **k: ran.append(1) or by_layers(*a, **k))
    mesh = _mesh()
    rule = _rule(mesh, stored=True)
    params, grads = (_arrays(mesh, "tensor", jnp.bfloat16, seed) for seed in (0, 1))
    made = {}
    for kernels in ("interpret", "xla"):
        step = jax.jit(lambda p, s, g, k=kernels: jl.apply(rule, g, s, p, kernels=k))
        made[kernels] = step(params, jl.init_state(rule, params), grads)
    assert ran
    for one, other in zip(*(jax.tree.leaves(made[k][0]) for k in made), strict=True):
        one, other = (np.asarray(x).astype(np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=2**-7)  # a last bit of bfloat16
        assert np.mean(one == other) > 0.99


def test_a_map_over_some_of_the_axes(monkeypatch):
    _gathering(monkeypatch, True)
    mesh = _mesh()
    rule = _rule(mesh)
    params, grads = (_arrays(mesh, "replicated", jnp.float32, seed) for seed in (0, 1))
    state = jl.init_state(rule, params)

    def step(grads, state, params):
        return jl.apply(rule, grads, state, params)

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=P(), out_specs=P(), axis_names={"model"}, check_vma=False
    )
    got, _ = jax.jit(mapped)(grads, state, params)
    want, _ = jax.jit(step)(grads, state, params)
    np.testing.assert_allclose(got["layers"], want["layers"], rtol=0, atol=2.4e-7)
