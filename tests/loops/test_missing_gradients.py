"""Gradients that are not there: filtered (LoRA, Equinox) and of integers, by `update` and by `apply`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh

from ..catalog import in_turn, some_of

PARAMS = {
    "base": jnp.linspace(-1, 1, 64 * 128).reshape(64, 128),
    "bias": jnp.linspace(0, 1, 128),
    "lora": jnp.linspace(-0.1, 0.1, 40 * 128).reshape(40, 128),
    "table": jnp.arange(5),
}
LEARNS = ("bias", "lora")


def rules():
    inner = jl.partition({"lora|bias": jl.adamw(1e-2), "*": jl.freeze()})
    clipped = optax.chain(jl.clip_by_global_norm(1.0), inner)
    formats = {"mu": jl.int8(), "nu": jl.int8()}
    mesh = make_mesh((8,), ("data",))
    return {
        "partition": inner,
        "clipped": clipped,
        "skip_nonfinite": jl.skip_nonfinite(clipped),
        "stored": jl.stored(clipped, **formats),
        "zero": jl.zero(clipped, mesh, "data"),
        "accumulate": jl.accumulate(clipped, 2),
        "offload": jl.offload(clipped),
        "all": jl.offload(jl.zero(jl.stored(clipped, **formats), mesh, "data")),
        "zero of accumulate": jl.zero(jl.accumulate(clipped, 2), mesh, "data"),
    }


def gradients(kind):
    """Of the leaves that learn; the others are None, or what `jax.grad` makes of integers."""

    def loss(p):
        return jnp.sum(jnp.sin(p["lora"])) + jnp.sum(p["bias"] ** 2) + jnp.sum(p["base"]) * 0

    whole = jax.grad(loss, allow_int=True)(PARAMS)
    assert whole["table"].dtype == jax.dtypes.float0
    return whole if kind == "integers" else {k: g if k in LEARNS else None for k, g in whole.items()}


def stepped(rule, how, grads, params, state):
    if how == "apply":
        return jl.apply(rule, grads, state, params)
    updates, state = rule.update(grads, state, params)
    return optax.apply_updates(params, updates), state


@functools.cache
def expected(steps):
    """optax's, on the leaves that learn."""
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    params = {k: PARAMS[k] for k in LEARNS}
    grads, state = {k: gradients("filtered")[k] for k in LEARNS}, rule.init(params)
    for _ in range(steps):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@in_turn("name", list(rules()), "way", ["update integers", "apply filtered"])
def test_leaves_without_gradient_stay_and_the_others_learn(name, way):
    how, kind = way.split()
    rule, grads, params = rules()[name], gradients(kind), PARAMS
    state = rule.init(params)
    step = jax.jit(lambda p, s: stepped(rule, how, grads, p, s))
    if "offload" in name or name == "all":
        step = jax.jit(
            lambda p, s: stepped(rule, how, grads, p, s),
            out_shardings=(jax.tree.map(lambda _: None, params), jl.state_shardings(rule, params)),
        )
    for _ in range(4 if "accumulate" in name else 2):
        params, state = step(params, state)
    for k in params:
        if k not in LEARNS:
            np.testing.assert_array_equal(params[k], PARAMS[k])
            assert params[k].dtype == PARAMS[k].dtype
        elif name != "partition":  # which does not clip
            coarse = name in ("stored", "all") and k == "lora"  # 8 bits
            np.testing.assert_allclose(params[k], expected(2)[k], rtol=2e-6, atol=2e-4 if coarse else 1e-6)
        else:
            assert np.any(np.asarray(params[k] != PARAMS[k]))


@pytest.mark.parametrize("name", some_of(rules(), "zero", "stored"))
def test_a_missing_gradient_of_a_leaf_that_learns_is_named(name):
    rule = rules()[name]
    state = rule.init(PARAMS)
    grads = gradients("filtered") | {"lora": None}
    for how in ("update", "apply"):
        with pytest.raises(
            ValueError, match=r"gradient is missing of a leaf that 'lora\|bias' is to train at lora"
        ):
            stepped(rule, how, grads, PARAMS, state)


def test_inside_a_mapped_axis():
    params = {k: v for k, v in PARAMS.items() if k != "table"}
    rule = jl.zero(jl.partition({"base": jl.freeze(), "*": jl.adamw(1e-2)}), axis_name="data")
    grads = gradients("filtered")
    grads = {k: grads[k] for k in params}

    @functools.partial(jax.pmap, axis_name="data")
    def step(params, grads):
        state = rule.init(params)
        return stepped(rule, "update", grads, params, state)[0]

    copies = jax.tree.map(lambda x: jnp.stack([x] * 8), (params, grads))
    new = jax.tree.map(lambda x: x[0], step(*copies))
    np.testing.assert_array_equal(new["base"], PARAMS["base"])
    alone = jl.adamw(1e-2)
    own = {k: params[k] for k in LEARNS}
    updates, _ = alone.update({k: grads[k] for k in LEARNS}, alone.init(own), own)
    for k in LEARNS:
        np.testing.assert_allclose(new[k], own[k] + updates[k], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", [jl.adamw(1e-2), optax.adamw(1e-2)], ids=["ours", "optax"])
def test_a_rule_without_groups_names_what_it_misses(rule):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    for wrapped in (
        jl.zero(rule, make_mesh((8,), ("data",)), "data"),
        jl.stored(rule, mu=jl.int8()),
        jl.accumulate(rule, 2),
    ):
        state = wrapped.init(params)
        for how in ("update", "apply"):
            with pytest.raises(ValueError, match="the gradient is missing at b"):
                stepped(wrapped, how, {"a": jnp.ones(2), "b": None}, params, state)


_WITH_HOLES = {"w": jnp.ones((64, 128)), "b": None, "c": {"d": jnp.ones(2), "e": None}}


@pytest.mark.parametrize(
    "make",
    [
        lambda: jl.partition({"*w": jl.adam(1e-3), "*": jl.freeze()}),
        lambda: jl.partition({"*w": jl.adam(1e-3), "*": jl.sgd(1e-2)}),
        lambda: jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8()),
        lambda: jl.accumulate(jl.partition({"*w": jl.adam(1e-3), "*": jl.lion(1e-2)}), 2),
        lambda: jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-3))),
        lambda: jl.zero(
            jl.partition({"*w": jl.adam(1e-3), "*": jl.freeze()}), make_mesh((8,), ("data",)), "data"
        ),
    ],
)
def test_nothing_in_the_place_of_a_parameter_stays_nothing(make):
    """As in an Equinox module that was filtered."""
    rule = make()
    state = rule.init(_WITH_HOLES)
    updates, new = jax.jit(rule.update)(_WITH_HOLES, state, _WITH_HOLES)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert jax.tree.structure(updates) == jax.tree.structure(_WITH_HOLES)
    params, applied = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p))(_WITH_HOLES, state, _WITH_HOLES)
    assert jax.tree.structure(params) == jax.tree.structure(_WITH_HOLES)
    assert jax.tree.structure(applied) == jax.tree.structure(state)
    assert jax.tree.structure(jl.state_shardings(rule, _WITH_HOLES)) == jax.tree.structure(state)


def test_one_none_stands_for_a_whole_part():
    params = {"head": {"w": jnp.ones((64, 128))}, "body": {"w": jnp.ones((64, 128)), "b": jnp.ones(3)}}
    rule = jl.zero(
        jl.partition({"head*": jl.adamw(0.1), "*": jl.freeze()}), make_mesh((8,), ("data",)), "data"
    )
    state, one = rule.init(params), {"head": params["head"], "body": None}
    each = {**one, "body": {"w": None, "b": None}}
    for step in (rule.update, lambda g, s, p: jl.apply(rule, g, s, p)):
        got, want = (step(g, state, params)[0] for g in (one, each))
        jax.tree.map(np.testing.assert_array_equal, got, want)
