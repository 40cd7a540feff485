"""Flax NNX: `nnx.Optimizer` keeps a state and hands it back, also compiled, split and divided."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh

from ..catalog import some_of

nnx = pytest.importorskip("flax.nnx")


def _stored(rule=None, **options):
    return jl.stored(jl.adamw(1e-2) if rule is None else rule, mu=jl.int8(), nu=jl.int8(), **options)


def _zero(rule):
    return jl.zero(rule, make_mesh((8,), ("data",)), "data")


RULES = {
    "plain": lambda: jl.adamw(1e-2),
    "stored": _stored,
    "split": lambda: _stored(params=jl.split()),
    "zero": lambda: _zero(_stored()),
    "accumulate": lambda: jl.accumulate(_stored(), 2),
    "partition": lambda: jl.partition({"*bias": jl.freeze(), "*": jl.adamw(1e-2)}),
    "chain": lambda: optax.chain(jl.clip_by_global_norm(1.0), _stored()),
}


def _model(name):
    dtype = jnp.bfloat16 if name == "split" else jnp.float32
    return nnx.Linear(64, 128, param_dtype=dtype, rngs=nnx.Rngs(0))


def _grads(model):
    return jax.tree.map(jnp.cos, nnx.state(model, nnx.Param))


@pytest.fixture
def optax_may_promote():
    """`apply_updates` adds float32 to bfloat16, and rounds."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("optax_may_promote")
@pytest.mark.parametrize("name", some_of(RULES, "plain", "chain", "accumulate"))
def test_two_updates_are_those_of_update_and_apply_updates(name):
    rule, model = RULES[name](), _model(name)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer, grads: optimizer.update(model, grads))
    for _ in range(2):
        step(model, optimizer, _grads(model))

    @jax.jit
    def plain(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = rule.init(params)
    for _ in range(2):
        params, state = plain(params, state, jax.tree.map(jnp.cos, params))
    for key, p in nnx.to_pure_dict(nnx.state(model, nnx.Param)).items():
        np.testing.assert_allclose(
            np.asarray(p, np.float32), np.asarray(params[key], np.float32), rtol=1e-5, atol=1e-6
        )


def test_without_jit_and_after_a_split_and_merge():
    model = _model("stored")
    optimizer = nnx.Optimizer(model, _stored(), wrt=nnx.Param)
    optimizer.update(model, _grads(model))
    graph, state = nnx.split((model, optimizer))
    model, optimizer = nnx.merge(graph, state)
    optimizer.update(model, _grads(model))
    assert int(optimizer.step[...]) == 2


def test_paths_and_with_them_random_bits_are_those_of_a_plain_dict():
    rule = jl.stored(jl.adamw(1e-2), mu=jl.int8(), nu={"*kernel": jl.int8(), "*": jl.bfloat16()})
    params, grads = nnx.state(_model("stored"), nnx.Param), _grads(_model("stored"))
    assert [c.path for c in rule.init(params).plan.choices] == ["", *["bias", "kernel"] * 2]
    states = []
    for p, g in ((params, grads), (nnx.to_pure_dict(params), nnx.to_pure_dict(grads))):
        states.append(jax.tree.leaves(rule.update(g, rule.init(p), p)[1]))
    for x, y in zip(*states, strict=True):
        np.testing.assert_array_equal(x, y)
