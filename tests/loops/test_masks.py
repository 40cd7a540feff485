"""Masks as people write them: globs, trees of booleans, functions; and what is no mask."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large.rules import RULES as REGISTRY

PARAMS = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "b": [jnp.ones(3), None]}
GRAMMAR = re.compile(r"^[a-z_]+: .+\.$")

RULES = {
    "adamw": lambda mask: jl.adamw(0.1, weight_decay=0.1, mask=mask),
    "lion": lambda mask: jl.lion(0.1, weight_decay=0.1, mask=mask),
    "scale_by_adamw": lambda mask: jl.scale_by_adamw(weight_decay=0.1, mask=mask),
    "add_decayed_weights": lambda mask: jl.add_decayed_weights(0.1, mask),
}

TREE = {"a": {"kernel": True, "bias": False}, "b": [False, None]}
KERNELS = {
    "glob": "*kernel",
    "tree": TREE,
    "prefix": {"a": {"kernel": True, "bias": False}, "b": False},
    "function": lambda p: jax.tree.map(lambda x: x is p["a"]["kernel"], p),
    "function to a glob": lambda p: "*kernel",
    "numpy": jax.tree.map(np.bool_, TREE),
    "arrays": jax.tree.map(np.asarray, TREE),
    "a tuple for a list": {**TREE, "b": (False, None)},
}


def decayed(rule, params):
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), rule.init(params), params)
    return [bool(jnp.any(u != 0)) for u in jax.tree.leaves(updates)]


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("name", RULES)
def test_what_is_a_mask(name, kind):
    assert decayed(RULES[name](KERNELS[kind]), PARAMS) == [False, True, False]


def test_a_dictionary_over_a_frozen_one():
    freeze = pytest.importorskip("flax.core").freeze
    assert decayed(RULES["adamw"](TREE), freeze(PARAMS)) == [False, True, False]
    assert decayed(RULES["adamw"](freeze(TREE)), PARAMS) == [False, True, False]


def test_a_mask_over_a_group():
    rule = jl.partition({"b*": jl.freeze(), "*": RULES["adamw"](TREE)})
    assert decayed(rule, {**PARAMS, "b": jnp.ones(3)}) == [False, True, False]


WRONG = {
    "a number": ({**TREE, "b": 1}, TypeError, "holds no boolean, got 1 at b;"),
    "an array": ({**TREE, "b": [np.ones(3, bool), None]}, TypeError, "at b/0;"),
    "a string inside": ({**TREE, "b": "*kernel"}, TypeError, "got '[*]kernel' at b;"),
    "a key that is missing": ({"a": True}, ValueError, "the mask has no entry at b;"),
    "a key too many": ({**TREE, "c": True}, ValueError, "no parameter at c;"),
    "a level too many": ({**TREE, "b": [{"x": True}, None]}, ValueError, "below a leaf, .* at b/0;"),
    "a glob that matches nothing": (
        "*kernle",
        ValueError,
        "matches no parameter, got '[*]kernle'; .*a/kernel",
    ),
    "a function that returns a number": (lambda p: 3, TypeError, "got 3 at the root;"),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", RULES)
def test_what_is_not(name, kind):
    mask, error, text = WRONG[kind]
    with pytest.raises(error, match=f"^{name}: .*{text}") as caught:
        RULES[name](mask).init(PARAMS)
    assert all(GRAMMAR.match(line) for line in str(caught.value).splitlines())


def test_frozen_by_a_glob():
    rule = optax.chain(optax.sgd(0.1), jl.freeze("*bias"))
    updates, _ = rule.update(PARAMS, rule.init(PARAMS), PARAMS)
    assert [bool(jnp.any(u != 0)) for u in jax.tree.leaves(updates)] == [False, True, True]


def _with_masks():
    for name, make in REGISTRY.items():
        parameters = inspect.signature(make).parameters
        mask = next((m for m in ("mask", "weight_decay_mask") if m in parameters), None)
        decay = next((d for d in ("weight_decay", "weight_decay_rate") if d in parameters), None)
        if mask and decay and "roles" not in parameters:
            yield pytest.param(make, decay, mask, id=name)


@pytest.mark.parametrize(("make", "decay", "mask"), list(_with_masks()))
def test_every_rule_decays_what_its_mask_says(make, decay, mask):
    params = {"in": jnp.ones((4, 6)), "out": jnp.ones((4, 6))}
    zero, extra = jax.tree.map(jnp.zeros_like, params), {"obj_fn": lambda p: jnp.float32(0.0)}
    for given in ("in", {"in": True, "out": False}, lambda p: {"in": True, "out": False}):
        own = {"lambd": 0.0} if make is jl.asgd else {}  # a decay of its own
        rule = make(0.1, **{decay: 0.5, mask: given}, **own)
        state, moved = rule.init(params), params
        for _ in range(2):
            updates, state = rule.update(zero, state, moved, **extra)
            moved = optax.apply_updates(moved, updates)
        assert moved["out"].tolist() == params["out"].tolist()
        assert bool(jnp.all(moved["in"] < params["in"]))
