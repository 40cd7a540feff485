import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large._paths import leaf_paths, matches


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Attention:
    q: jax.Array
    value: jax.Array


def _expected():
    return ["layers/0/attn/q", "layers/0/attn/value"]


def test_paths_of_dictionaries_lists_and_dataclasses():
    assert leaf_paths({"layers": [{"attn": Attention(jnp.ones(1), jnp.ones(1))}]}) == _expected()
    assert leaf_paths(jnp.ones(2)) == [""]
    assert leaf_paths({"b": (1, None, 2)}) == ["b/0", "b/2"]


@pytest.mark.compat
def test_paths_of_equinox_modules():
    eqx = pytest.importorskip("equinox")

    class Attn(eqx.Module):
        q: jax.Array
        value: jax.Array

    class Net(eqx.Module):
        layers: list

    assert leaf_paths(Net([{"attn": Attn(jnp.ones(1), jnp.ones(1))}])) == _expected()


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore")
def test_paths_of_flax_modules():
    nnx = pytest.importorskip("flax.nnx")
    nn = pytest.importorskip("flax.linen")

    class Net(nnx.Module):
        def __init__(self):
            self.dense = nnx.Param(jnp.ones((2, 2)))
            self.value = nnx.Param(jnp.ones(2))

    assert leaf_paths(nnx.state(Net())) == ["dense", "value"]
    with jax.numpy_dtype_promotion("standard"):
        variables = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    assert leaf_paths(variables) == ["params/bias", "params/kernel"]


@pytest.mark.filterwarnings("ignore")
def test_partition_of_a_flax_module_by_path():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self):
            self.dense = nnx.Param(jnp.ones((2, 2)))
            self.bias = nnx.Param(jnp.ones(2))

    params = nnx.state(Net())
    rule = jl.partition({"bias": jl.freeze(), "*": jl.sgd(0.5)})
    updates, _ = rule.update(params, rule.init(params), params)
    assert [float(u.ravel()[0]) for u in jax.tree.leaves(updates)] == [0.0, -0.5]


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("*", "a/b", True),
        ("*/kernel", "a/b/kernel", True),
        ("*/kernel", "kernel", False),
        ("*embed*|*head*", "lm_head/w", True),
        ("layers/[01]/*", "layers/1/w", True),
        ("layers/?/w", "layers/10/w", False),
        ("a | b", "b", True),
        ("Kernel", "kernel", False),
    ],
)
def test_globs(glob, path, expected):
    assert matches(glob, path) is expected


def test_first_match_wins():
    params = {"embed": jnp.ones(2), "layers": [{"kernel": jnp.ones(2)}], "norm": jnp.ones(2)}
    rule = jl.partition({"*embed*": jl.sgd(1.0), "*/kernel": jl.sgd(2.0), "*": jl.sgd(3.0)})
    updates, state = rule.update(params, rule.init(params), params)
    assert [float(u[0]) for u in jax.tree.leaves(updates)] == [-1.0, -2.0, -3.0]
    assert set(state.inner_states) == {"*embed*", "*/kernel", "*"}


def test_every_leaf_needs_a_rule_and_every_glob_a_leaf():
    params = {"dense": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
    with pytest.raises(ValueError, match="glob") as caught:
        jl.partition({"*/kernal": jl.sgd(1.0), "*bias": jl.sgd(1.0)}).init(params)
    text = str(caught.value)
    assert "partition: 1 of 2 leaves have no rule" in text
    assert "glob '*/kernal' matches none of 2 leaves; the nearest paths are 'dense/kernel'" in text


def test_a_glob_that_comes_too_late_is_named():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match="glob 'b' gets no leaf: earlier globs took all 1 it matches"):
        jl.partition({"*": jl.sgd(1.0), "b": jl.sgd(2.0)}).init(params)


def test_what_is_not_a_rule_is_refused():
    partition = inspect.unwrap(jl.partition)  # without the tests' type checker in front
    with pytest.raises(TypeError, match=r"the entry for 'a' is not a rule, got 0.1"):
        partition({"a": 0.1})
    with pytest.raises(ValueError, match="rules is empty"):
        partition({})
    with pytest.raises(TypeError, match="rules is not a mapping"):
        partition([jl.sgd(1.0)])


def test_frozen_leaves_keep_every_bit_and_no_state():
    params = {"a": jnp.array([-0.0, 1.0]), "ids": jnp.arange(3), "w": jnp.ones(2)}
    rule = jl.partition({"a|ids": jl.freeze(), "*": jl.adam(1e-3)})
    state = rule.init(params)
    assert {x.shape for x in jax.tree.leaves(state)} == {(), (2,)}
    updates, _ = rule.update(params, state, params)
    after = optax.apply_updates(params, updates)
    for name in ("a", "ids"):
        assert np.asarray(after[name]).tobytes() == np.asarray(params[name]).tobytes()


def test_extra_arguments_reach_the_rules():
    rule = jl.partition({"*": optax.contrib.reduce_on_plateau()})
    params = {"w": jnp.ones(2)}
    with jax.numpy_dtype_promotion("standard"):
        rule.update(params, rule.init(params), params, value=jnp.float32(1.0))


def test_a_partition_in_a_partition():
    """Each has holes for the leaves of the other's rules."""
    params = {name: jnp.ones(n + 2) for n, name in enumerate("abcd")}
    inner = jl.partition({"c": jl.sgd(1.0), "*": jl.sgd(2.0)})
    rule = jl.partition({"a": jl.freeze(), "*": inner})
    updates, _ = rule.update(params, rule.init(params), params)
    assert {name: float(u[0]) for name, u in updates.items()} == {"a": 0.0, "b": -2.0, "c": -1.0, "d": -2.0}
