"""A state of another rule gets one error: whose was expected, which was given, where they part."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_large as jl
from tests.loops.wrappings import GRADS, PARAMS, WRAPPED, begun

OTHERS = {
    "lion": lambda: optax.lion(1e-3).init(PARAMS),
    "none": lambda: None,
    "longer": lambda: (*optax.adamw(1e-3).init(PARAMS), optax.EmptyState(), optax.EmptyState()),
    "array": lambda: jnp.ones(3),
}


def _stepped(how, rule, state):
    if how == "apply":
        return jl.apply(rule, GRADS[0], state, PARAMS)
    return rule.update(GRADS[0], state, PARAMS)


@pytest.mark.parametrize("how", ["update", "apply"])
@pytest.mark.parametrize("name", [n for n in WRAPPED if n != "chain"])
def test_another_state_around(name, how):
    rule = begun(name)[0]
    for other in OTHERS.values():
        with pytest.raises(
            (TypeError, ValueError), match=r"^\w+: the state is not one of .*, got .*\. Pass what"
        ):
            _stepped(how, rule, other())


@pytest.mark.parametrize("how", ["update", "apply"])
@pytest.mark.parametrize("name", ["stored", "zero", "accumulate", "offload", "all"])
def test_another_state_within(name, how):
    rule, _, state, _ = begun(name)
    field = "inner"
    for other in OTHERS.values():
        with pytest.raises(
            (TypeError, ValueError), match=r"^\w+: the state is not one of .*, got .*\. Pass what"
        ):
            _stepped(how, rule, state._replace(**{field: other()}))


@pytest.mark.parametrize("rule", [optax.adamw(1e-3), optax.chain(optax.clip(1.0), optax.adam(1e-3))])
def test_optax_rules_by_apply(rule):
    for other in OTHERS.values():
        with pytest.raises(
            (TypeError, ValueError), match=r"^apply: the state is not one of .*, got .*\. Pass"
        ):
            jl.apply(rule, GRADS[0], other(), PARAMS)


def test_convert_says_where_they_part():
    with pytest.raises((TypeError, ValueError), match=r"^convert: .* got .*ScaleByLionState"):
        jl.convert(
            optax.lion(1e-3).init(PARAMS), jl.adamw(1e-3), jl.stored(jl.adamw(1e-3), mu=jl.int8()), PARAMS
        )


_P = {"head": {"w": jnp.ones((64, 128))}, "body": {"w": jnp.ones((64, 128))}}
_B = jax.tree.map(lambda p: p.astype(jnp.bfloat16), _P)


def _kept(params):
    return jl.stored(jl.adamw(1e-2), params, mu=jl.int8(), nu=jl.int8())


@pytest.mark.parametrize(
    ("own", "other", "params"),
    [
        (jl.rmsprop(0.1), jl.adamw(0.1), _P),
        (jl.adagrad(0.1), jl.adamw(0.1), _P),
        (jl.lion(0.1), jl.adamw(0.1), _P),
        (jl.partition({"*w": jl.adamw(0.1)}), jl.partition({"*": jl.adamw(0.1)}), _P),
        (_kept(None), _kept(jl.split()), _B),
        (_kept(jl.rounded()), _kept(jl.split()), _B),
        (_kept(jl.split()), _kept(jl.rounded()), _B),
    ],
)
def test_states_that_look_alike_are_told_apart(own, other, params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        state = other.init(params)
    with pytest.raises((TypeError, ValueError), match=r"^[a-z_]+: (the state is|.*state is not one of)"):
        own.update(params, state, params)


def test_an_error_of_a_rule_is_not_taken_for_a_missing_gradient():
    rule = jl.accumulate(jl.partition({"head*": jl.adamw(lambda count: None), "*": jl.freeze()}), 1)
    with pytest.raises((TypeError, ValueError), match="learning_rate is not a number"):
        rule.update({"head": _P["head"], "body": {"w": None}}, rule.init(_P), _P)


def test_accumulate_says_which_gradient_has_another_shape():
    rule = jl.accumulate(jl.sgd(0.1), 2)
    grads = {**_P, "head": {"w": jnp.ones((2, 128))}}
    with pytest.raises(
        ValueError, match=r"^accumulate: a gradient has shape \(2, 128\) at head/w; in init it had"
    ):
        rule.update(grads, rule.init(_P), _P)
