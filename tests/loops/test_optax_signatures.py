"""Where optax has a name, ours is called as optax's is: by position or by name, with the same defaults."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

pytestmark = pytest.mark.compat

SHARED = sorted(
    name
    for name in set(dir(jl)) & set(dir(optax))
    if inspect.isfunction(getattr(jl, name)) and inspect.isfunction(getattr(optax, name))
)
# what may be left out of ours, and then means something that optax lacks: a rule for all leaves, groups by path
OPTIONAL = {("freeze", "mask"), ("partition", "param_labels")}


def test_there_are_shared_names():
    assert {"sgd", "adam", "adamw", "adagrad", "rmsprop", "lion", "clip_by_global_norm"} <= set(SHARED)


@pytest.mark.parametrize("name", SHARED)
def test_signatures(name):
    ours = list(inspect.signature(getattr(jl, name)).parameters.values())
    theirs = list(inspect.signature(getattr(optax, name)).parameters.values())
    for mine, its in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind) == (its.name, its.kind)
        assert mine.default == its.default or (name, mine.name) in OPTIONAL
    assert len(ours) >= len(theirs)
    assert all(p.default is not p.empty for p in ours[len(theirs) :])


PARAMS = {"w": np.linspace(-1, 1, 6, dtype=np.float32), "b": np.ones(2, np.float32)}
CALLS = {
    "sgd": lambda o: o.sgd(0.1, 0.9),
    "sgd-nesterov": lambda o: o.sgd(0.1, 0.9, True, jnp.float32),
    "adam": lambda o: o.adam(1e-3, 0.9, 0.95),
    "adamw": lambda o: o.adamw(1e-3, 0.9, 0.95, 1e-8, 0.0, None, 0.1, {"w": True, "b": False}),
    "adagrad": lambda o: o.adagrad(0.1, 0.2, 1e-6),
    "rmsprop": lambda o: o.rmsprop(1e-2, 0.95, 1e-6, 0.1, False, True, 0.9, True, True),
    "lion": lambda o: o.lion(1e-3, 0.8, 0.9, None, 0.1),
    "decay": lambda o: o.add_decayed_weights(0.1, {"w": True, "b": False}),
    "rate": lambda o: o.scale_by_learning_rate(0.1, flip_sign=False),
    "no rate": lambda o: o.scale_by_learning_rate(),
    "lion-smooth": lambda o: o.scale_by_lion(0.8, 0.9, mode="smooth", smooth_beta=2.0),
    "lion-refined": lambda o: o.scale_by_lion(0.8, 0.9, mode="refined"),
    "freeze": lambda o: o.freeze({"w": True, "b": False}),
    "partition": lambda o: o.partition({"a": o.sgd(0.1), "f": o.set_to_zero()} if o is optax else
                                       {"a": o.sgd(0.1), "f": o.freeze()}, {"w": "a", "b": "f"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    params = jax.tree.map(jnp.asarray, PARAMS)

    def steps(rule):
        state = rule.init(params)
        for grads in (params, jax.tree.map(lambda p: p * 2.5, params)):
            updates, state = rule.update(grads, state, params)
        return updates

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for a, b in zip(*(jax.tree.leaves(steps(CALLS[name](o))) for o in (jl, optax)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7)
