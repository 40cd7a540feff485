"""Leaves that are no JAX arrays: Python numbers, NumPy arrays and NumPy scalars."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl

from ..catalog import bits_of, every_variant

LEAVES = {
    "float": (1.5, 0.5),
    "int": (2, 1),
    "float64 array": (np.linspace(1, 2, 4), np.linspace(-1, 1, 4)),
    "float32 array": (np.ones(4, np.float32), np.full(4, 0.5, np.float32)),
    "float16 array": (np.ones(4, np.float16), np.full(4, 0.5, np.float16)),
    "float64 scalar": (np.float64(1.5), np.float64(0.5)),
    "float32 scalar": (np.float32(1.5), np.float32(0.5)),
    "mixed": (1.5, np.float32(0.5)),
    "numpy beside jax": (np.ones(4, np.float32), jnp.full(4, 0.5)),
}
PARAMS = {name: p for name, (p, _) in LEAVES.items()}
GRADS = {name: g for name, (_, g) in LEAVES.items()}


def as_arrays(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, float) if isinstance(x, int) else jnp.asarray(x), tree)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert bits_of(x) == bits_of(y)


@every_variant
def test_rules(case):
    rule = case.rule()
    with jax.numpy_dtype_promotion("strict"):
        got = rule.update(GRADS, rule.init(PARAMS), PARAMS)
        same(got, rule.update(as_arrays(GRADS), rule.init(as_arrays(PARAMS)), as_arrays(PARAMS)))


WRAPPED = {
    "clip": lambda: jl.clip_by_global_norm(0.1),
    "skip": lambda: jl.skip_nonfinite(jl.adamw(0.1)),
    "partition": lambda: jl.partition({"int": jl.freeze(), "*": jl.adam(0.1)}),
    "stored": lambda: jl.stored(jl.adamw(0.1), mu={"*array": jl.int8(), "*": jl.float32()}),
    "accumulate": lambda: jl.accumulate(jl.adamw(0.1), 2),
    "offload": lambda: jl.offload(jl.adamw(0.1)),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers(name):
    rule = WRAPPED[name]()
    params, grads = ({k: x for k, x in tree.items() if k != "float16 array"} for tree in (PARAMS, GRADS))
    got = rule.update(grads, rule.init(params), params)
    same(got, rule.update(as_arrays(grads), rule.init(as_arrays(params)), as_arrays(params)))


def test_zero(mesh8):
    rule = jl.zero(jl.adamw(0.1), mesh8, axis="data")
    got = rule.update(GRADS, rule.init(PARAMS), PARAMS)
    same(got, rule.update(as_arrays(GRADS), rule.init(as_arrays(PARAMS)), as_arrays(PARAMS)))


def test_apply():
    """An integer stays one, as under `optax.apply_updates`."""
    rule, params, grads = jl.adamw(0.1), {**PARAMS, "int": 2.0}, {**GRADS, "int": 1.0}
    got = jl.apply(rule, grads, rule.init(params), params)
    same(got, jl.apply(rule, as_arrays(grads), rule.init(as_arrays(params)), as_arrays(params)))


def test_norms():
    assert float(jl.global_norm({"a": 3.0, "b": np.float64(4.0), "c": 0})) == 5.0


@pytest.mark.parametrize("leaf", [True, np.arange(3), "x", jnp.arange(3)])
def test_what_is_no_parameter(leaf):
    with pytest.raises(TypeError, match=r"^adam: a parameter is not a floating array, got .* at w; "):
        jl.adam(0.1).init({"w": leaf})


def test_numbers_where_a_state_is_planned():
    rule, params = jl.adam(1e-3), {"a": 1.0, "b": np.float64(2.0)}
    state = rule.init(params)
    for planned in (
        jl.state_shardings(rule, params),
        jl.state_specs(rule, params),
        jl.init_state(rule, params),
    ):
        assert jax.tree.structure(planned) == jax.tree.structure(state)
    assert len(jax.tree.leaves(jl.abstract_state(rule, params))) == len(jax.tree.leaves(state))
    assert jax.tree.structure(jl.convert(state, rule, rule, params)) == jax.tree.structure(state)
