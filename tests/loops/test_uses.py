"""What people do with a rule's state: it passes through, and training goes on as if nothing had been."""

import copy
import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

from .wrappings import GRADS, PARAMS, WRAPPED, begun, every_wrapper, goes_on, same_bits

pytestmark = pytest.mark.compat


@every_wrapper
def test_deepcopy(name):
    goes_on(name, copy.deepcopy(begun(name)[2]))


@every_wrapper
def test_pickle_of_a_host_copy(name):
    state = jax.device_get(begun(name)[2])
    goes_on(name, pickle.loads(pickle.dumps(state)))


@every_wrapper
def test_flax_serialization(name):
    serialization = pytest.importorskip("flax.serialization")
    rule, _, state, _ = begun(name)
    target = rule.init(PARAMS)
    goes_on(name, serialization.from_bytes(target, serialization.to_bytes(state)))
    goes_on(name, serialization.from_state_dict(target, serialization.to_state_dict(state)))


@every_wrapper
def test_flax_train_state(name):
    train_state = pytest.importorskip("flax.training.train_state")
    rule, _, _, _ = begun(name)
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=rule)
    step = jax.jit(lambda s, g: s.apply_gradients(grads=g))
    for g in GRADS[:2]:
        state = step(state, g)
    same_bits((state.params, state.opt_state), begun(name)[3])


@every_wrapper
def test_orbax(name, tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    rule, _, state, _ = begun(name)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, rule.init(PARAMS))
        goes_on(name, checkpointer.restore(tmp_path / "state", shapes))


@every_wrapper
def test_equinox_serialise_leaves(name):
    eqx = pytest.importorskip("equinox")
    rule, _, state, _ = begun(name)
    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, state)
    file.seek(0)
    goes_on(name, eqx.tree_deserialise_leaves(file, rule.init(PARAMS)))


@every_wrapper
def test_optax_tree_get_and_set(name):
    _, _, state, _ = begun(name)
    if name == "partition":  # two momenta: a filter by type tells them apart
        (found,) = {id(v): v for _, v in optax.tree_utils.tree_get_all_with_path(state, "nu")}.values()
        goes_on(name, optax.tree_utils.tree_set(state, nu=found))
        return
    mu = optax.tree_utils.tree_get(state, "mu")
    assert jax.tree.leaves(mu)
    goes_on(name, optax.tree_utils.tree_set(state, mu=mu))


@every_wrapper
def test_optax_tree_map_params(name):
    rule, _, state, _ = begun(name)
    touched = []
    same = optax.tree_utils.tree_map_params(rule, lambda x: touched.append(x.shape) or x, state)
    assert touched
    goes_on(name, same)
    counted = optax.tree_utils.tree_map_params(rule, lambda x: x, state, transform_non_params=lambda x: x)
    goes_on(name, counted)


@pytest.mark.parametrize("name", ["plain", "chain", "zero", "accumulate", "offload"])
def test_optax_tree_map_params_with_trees_like_the_parameters(name):
    rule, _, state, _ = begun(name)
    names = {"dense": {"kernel": "K", "bias": "B"}, "scale": "S"}
    seen = set()
    optax.tree_utils.tree_map_params(rule, lambda x, n: seen.add(n) or x, state, names)
    assert seen == {"K", "B", "S"}


@every_wrapper
def test_key_paths(name):
    state = begun(name)[2]
    found, treedef = jax.tree_util.tree_flatten_with_path(state)
    names = [jax.tree_util.keystr(path) for path, _ in found]
    assert len(set(names)) == len(names)
    goes_on(name, treedef.unflatten([x for _, x in found]))
    goes_on(name, jax.tree_util.tree_map_with_path(lambda _, x: x, state))


@every_wrapper
def test_eval_shape(name):
    rule, _, state, _ = begun(name)
    shapes = jax.eval_shape(rule.init, PARAMS)
    kinds = jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert jax.tree.leaves(kinds) == jax.tree.leaves(jax.tree.map(lambda x: (x.shape, x.dtype), state))


@every_wrapper
def test_scan(name):
    rule, _, _, _ = begun(name)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *GRADS[:2])

    def step(carry, g):
        params, state = carry
        updates, state = rule.update(g, state, params)
        return (optax.apply_updates(params, updates), state), None

    def run(params, state, gradients):
        if name in ("offload", "all"):  # a loop's types tell host memory from the device's, a jit's do not
            state = jax.device_put(state, jl.state_shardings(rule, PARAMS))
        return jax.lax.scan(step, (params, state), gradients)[0]

    params, state = jax.jit(run)(PARAMS, rule.init(PARAMS), stacked)
    expected, there = begun(name)[3]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(state) == jax.tree.structure(there)


@every_wrapper
def test_vmap(name):
    if name in ("zero", "offload", "all"):
        pytest.skip("placement is of whole arrays")
    rule, _, _, _ = begun(name)
    two = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)

    def run(params):
        state = rule.init(params)
        for g in GRADS[:2]:
            updates, state = rule.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params

    made = jax.jit(jax.vmap(run))(two)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(begun(name)[3][0]), strict=True):
        np.testing.assert_allclose(np.asarray(a)[1], np.asarray(b), rtol=1e-5, atol=1e-6)


def test_names():
    assert set(WRAPPED) >= {"plain", "stored", "zero", "accumulate", "offload", "all"}
