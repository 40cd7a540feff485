"""Errors: one grammar, all problems at once, at construction when the value is a number."""

import inspect
import re

import jax.numpy as jnp
import pytest

import jaxopt_large as jl

from ..catalog import RULES, in_turn

_GRAMMAR = re.compile(r"^[a-z_0-9]+: .+\.$")


def _rate_of(case):
    """What a rule calls its first argument."""
    return next(iter(inspect.signature(case.ours).parameters.values()))


@in_turn("case", RULES, "rate", [-1, -1e-9, float("nan"), float("inf")])
def test_learning_rates_out_of_range(case, rate):
    name = _rate_of(case).name
    with pytest.raises(ValueError, match=f"{case.name}: {name} is out of range, got {rate!r}") as caught:
        case.ours(rate)
    assert all(_GRAMMAR.match(line) for line in str(caught.value).splitlines())


@in_turn("case", RULES, "rate", ["3e-4", None, True, [1.0]])
def test_learning_rates_that_are_no_numbers(case, rate):
    if rate is None and _rate_of(case).default is None:
        pytest.skip("None leaves the rate out")
    with pytest.raises(TypeError, match=f"{case.name}: {_rate_of(case).name} is not a number"):
        case.ours(rate)


@pytest.mark.parametrize("value", [1, 1.0, 1.5, -0.1])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (jl.adam, "b1"),
        (jl.adam, "b2"),
        (jl.adamw, "b1"),
        (jl.lion, "b2"),
        (jl.rmsprop, "decay"),
        (jl.rmsprop, "momentum"),
        (jl.sgd, "momentum"),
    ],
)
def test_decay_rates(make, name, value):
    with pytest.raises(
        ValueError, match=rf"{make.__name__}: {name} is out of range, got {value}; .*\[0, 1\)"
    ):
        make(1e-3, **{name: value})


def test_all_problems_are_named_at_once():
    with pytest.raises(ValueError, match="learning_rate") as caught:
        jl.adamw(-1.0, b1=1.0, b2=2.0, eps=-1.0, weight_decay=-0.1)
    text = str(caught.value)
    assert [name in text for name in ("learning_rate", "b1", "b2", "eps", "weight_decay")] == [True] * 5
    assert len(text.splitlines()) == 5


def test_arrays_must_be_scalars():
    with pytest.raises(ValueError, match=r"learning_rate is not a scalar, got an array of shape \(2,\)"):
        jl.adam(jnp.ones(2))


def test_moment_dtypes_must_be_floating():
    """optax truncates an int8 momentum to 0 without a word."""
    with pytest.raises(ValueError, match="mu_dtype is not a floating dtype, got 'int8'"):
        jl.adam(1e-3, mu_dtype=jnp.int8)


def test_parameters_must_be_floating():
    with pytest.raises(TypeError, match="got 'int32' at ids/0") as caught:
        jl.adam(1e-3).init({"ids": [jnp.arange(3)], "text": "a", "w": jnp.ones(2)})
    assert "got 'str' at text" in str(caught.value)


@pytest.mark.parametrize("rule", [jl.adamw(1e-3), jl.lion(1e-3), jl.add_decayed_weights(0.1)])
def test_params_are_asked_for(rule):
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="params are needed, got None"):
        rule.update(params, rule.init(params))


def test_gradients_of_another_tree():
    rule = jl.adam(1e-3)
    state = rule.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="missing 'b'; unexpected 'c'"):
        rule.update({"a": jnp.ones(2), "c": jnp.ones(2)}, state)


def test_a_missing_gradient_is_named():
    rule = jl.adam(1e-3)
    state = rule.init({"a": jnp.ones(2), "b": jnp.ones(2)})
    with pytest.raises(ValueError, match="missing 'b'"):
        rule.update({"a": jnp.ones(2), "b": None}, state)


def test_gradients_of_another_shape():
    rule = jl.adam(1e-3)
    with pytest.raises(ValueError, match=r"gradient has shape \(3,\) at layers/0; .*\(2,\)"):
        rule.update({"layers": [jnp.ones(3)]}, rule.init({"layers": [jnp.ones(2)]}))


@pytest.mark.parametrize("value", [0, -1.0, "1"])
def test_clipping_needs_a_positive_norm(value):
    with pytest.raises((ValueError, TypeError), match="clip_by_global_norm: max_norm"):
        jl.clip_by_global_norm(value)


def test_schedules_check_their_numbers():
    with pytest.raises(ValueError, match="warmup_steps is out of range, got -1"):
        jl.warmup_stable_decay(1.0, warmup_steps=-1, stable_steps=1, decay_steps=1)
    with pytest.raises(ValueError, match="warmup_steps is out of range, got 0"):
        jl.inverse_sqrt(1.0, warmup_steps=0)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'adamx'"):
        _ = jl.adamx


@pytest.mark.parametrize(
    "other",
    [None, (), jl.lion(0.1).init(jnp.ones(2)), jl.sgd(0.1, 0.9).init(jnp.ones(2)), {"mu": 1}],
    ids=["None", "empty", "of three", "sgd", "a dict"],
)
def test_states_of_other_rules(other):
    rule, params = jl.adam(0.1), jnp.ones(2)
    with pytest.raises(
        ValueError, match=r"adam: the state is not one of adam: expected .*, got .*"
    ) as caught:
        rule.update(params, other, params)
    assert _GRAMMAR.match(str(caught.value))


@pytest.mark.parametrize(
    "returned", [None, "0.1", 1j, [0.1], jnp.ones(3)], ids=["None", "text", "complex", "list", "vector"]
)
def test_what_schedules_return(returned):
    rule, params = jl.adamw(lambda count: returned), jnp.ones(2)
    with pytest.raises((TypeError, ValueError), match=r"adamw: learning_rate is not a (number|scalar), got"):
        rule.update(params, rule.init(params), params)


@pytest.mark.parametrize("dtype", ["junk", int, object()])
def test_dtypes_that_are_none(dtype):
    for make in (jl.adam, jl.adamw, jl.lion):
        with pytest.raises(ValueError, match=f"{make.__name__}: mu_dtype is not a floating dtype"):
            make(0.1, mu_dtype=dtype)
    with pytest.raises(ValueError, match="sgd: accumulator_dtype is not a floating dtype"):
        jl.sgd(0.1, accumulator_dtype=dtype)


_PARAMS = {"w": jnp.ones((4, 4))}


@pytest.mark.parametrize(
    "call",
    [
        lambda rule, state: jl.explain(3, _PARAMS),
        lambda rule, state: jl.explain(rule, {"w": "x"}),
        lambda rule, state: jl.explain_apply(rule, {"w": "x"}),
        lambda rule, state: jl.state_shardings(rule, "x"),
        lambda rule, state: jl.state_specs(rule, _PARAMS, mesh=3),
        lambda rule, state: jl.apply(rule, _PARAMS, state, None),
        lambda rule, state: jl.apply(rule, None, state, _PARAMS),
        lambda rule, state: jl.convert(state, 3, rule),
        lambda rule, state: jl.convert(state, rule, None),
        lambda rule, state: jl.microbatched_grad(3, 2),
        lambda rule, state: jl.accumulate(rule, 2.5),
        lambda rule, state: jl.stored(rule, mu="int8"),
        lambda rule, state: jl.plan.collectives(3),
    ],
)
def test_arguments_of_another_kind(call):
    rule = jl.adam(1e-3)
    with pytest.raises((TypeError, ValueError)) as caught:
        call(rule, rule.init(_PARAMS))
    assert all(_GRAMMAR.match(line) for line in str(caught.value).splitlines()), str(caught.value)


def test_numbers_are_explained_as_parameters():
    rule = jl.adam(1e-3)
    assert len(jl.explain_apply(rule, {"a": 1.0, "w": jnp.ones((4, 4))})) == 2
