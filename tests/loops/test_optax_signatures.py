"""Where optax has a name, ours is called as optax's is: by position or by name, with the same defaults."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import jaxopt_large as jl

pytestmark = pytest.mark.compat

UNDER_OTHER_NAMES = {"mechanize": "mechanic"}
SHARED = {
    name: (getattr(jl, ours), theirs)
    for home in (optax, optax.contrib)
    for name, theirs in sorted(vars(home).items())
    for ours in [UNDER_OTHER_NAMES.get(name, name)]
    if callable(theirs) and not isinstance(theirs, type) and ours in dir(jl)
}
FILLED = {  # arguments that optax wants
    "learning_rate": 0.1,
    "max_norm": 1.0,
    "weight_decay": 0.1,
    "eta": 0.1,
    "gamma": 0.5,
    "mask": {"w": True, "b": False},
    "param_labels": {"w": "a", "b": "a"},
    "transforms": {"a": optax.sgd(0.1)},
    **dict.fromkeys(("fast_optimizer", "base_optimizer"), optax.sgd(0.1)),
    "sync_period": 5,
    "slow_step_size": 0.5,
}
MAY_BE_LEFT_OUT = "ours may leave it out"
NAMED_RULE = "every wrapper of ours calls it `rule`"
NAMED_NUMBERS = "optax's three numbers have a name"
ROLES = "`roles` say how leaves are read"
OTHER_LEAVES = "`other` is the rule of the leaves that are no matrices"
INSIDE = "Adam is inside, and what it takes stands in the place of the rule"
SAM = "sam takes a distance and a function for the gradient, no second rule"
TAKEN = (None, MAY_BE_LEFT_OUT, NAMED_RULE, NAMED_NUMBERS)  # by position all the same
# (name, argument of optax's): why ours differs there
EXCEPTIONS = {
    ("add_noise", "eta"): MAY_BE_LEFT_OUT,
    ("add_noise", "gamma"): MAY_BE_LEFT_OUT,
    ("freeze", "mask"): MAY_BE_LEFT_OUT,
    ("partition", "param_labels"): MAY_BE_LEFT_OUT,
    ("lookahead", "sync_period"): MAY_BE_LEFT_OUT,
    ("lookahead", "slow_step_size"): MAY_BE_LEFT_OUT,
    ("lookahead", "fast_optimizer"): NAMED_RULE,
    ("lookahead", "reset_state"): "the rule's state is kept",
    ("mechanize", "base_optimizer"): NAMED_RULE,
    ("schedule_free", "base_optimizer"): NAMED_RULE,
    ("scale_by_factored_rms", "decay_rate_fn"): "the decay is the one of the paper",
    ("adopt", "clip_value_fn"): "the same function, written again",
    ("scale_by_adopt", "clip_value_fn"): "the same function, written again",
    ("sophia", "hessian_diagonal_fn"): "None is Hutchinson's estimate, which is optax's default",
    ("sophia", "verbose"): "nothing is printed",
    ("sophia", "print_win_rate_every_n_steps"): "nothing is printed",
    ("muon", "ns_coeffs"): NAMED_NUMBERS,
    ("scale_by_muon", "ns_coeffs"): NAMED_NUMBERS,
    ("muon", "adam_b1"): OTHER_LEAVES,
    ("muon", "adam_b2"): OTHER_LEAVES,
    ("muon", "adam_eps_root"): OTHER_LEAVES,
    ("muon", "adam_weight_decay"): OTHER_LEAVES,
    ("muon", "adam_learning_rate"): OTHER_LEAVES,
    ("muon", "muon_weight_dimension_numbers"): ROLES,
    ("muon", "consistent_rms"): '`scale="moonlight"`',
    ("scale_by_muon", "weight_dimension_numbers"): ROLES,
    ("galore", "base_optimizer"): INSIDE,
    ("galore", "weight_decay"): INSIDE,
    ("galore", "mask"): INSIDE,
    ("galore", "weight_dimension_numbers"): ROLES,
    ("scale_by_galore", "base_optimizer"): INSIDE,
    ("scale_by_galore", "weight_dimension_numbers"): ROLES,
    **{
        ("sam", argument): SAM
        for argument in (
            "optimizer",
            "adv_optimizer",
            "sync_period",
            "reset_state",
            "opaque_mode",
            "batch_axis_name",
        )
    },
}


def test_there_are_shared_names():
    rules = {"sgd", "adam", "nadamw", "adafactor", "lamb", "madgrad", "muon", "sophia"}
    assert rules | {"scale_by_adam", "add_noise", "clip_by_global_norm", "mechanize"} <= {*SHARED}


@pytest.mark.parametrize("name", SHARED)
def test_signatures(name):
    ours, theirs = (list(inspect.signature(f).parameters.values()) for f in SHARED[name])
    by_name = {p.name: p for p in ours}
    for n, its in enumerate(theirs):
        if (name, its.name) not in EXCEPTIONS:
            mine = by_name[its.name] if its.kind is its.KEYWORD_ONLY else ours[n]
            assert (mine.name, mine.kind, mine.default) == (its.name, its.kind, its.default)
    further = {*by_name} - {p.name for p in theirs} - {"rule"}
    assert all(by_name[n].default is not inspect.Parameter.empty for n in further)


@pytest.mark.parametrize(("name", "argument"), EXCEPTIONS)
def test_exceptions_are_differences(name, argument):
    ours, theirs = (inspect.signature(f).parameters for f in SHARED[name])
    mine, its = ours.get(argument), theirs[argument]
    assert (
        mine is None
        or (mine.kind, mine.default) != (its.kind, its.default)
        or list(ours).index(argument) != list(theirs).index(argument)
    )


def by_position(name):
    """optax's own values in its order, as far as ours takes the same; None of what is no rule."""
    given = []
    for p in inspect.signature(SHARED[name][1]).parameters.values():
        if p.kind is p.KEYWORD_ONLY or EXCEPTIONS.get((name, p.name)) not in TAKEN:
            break
        if p.default is p.empty and p.name not in FILLED:
            return None
        given.append(FILLED[p.name] if p.default is p.empty else p.default)
    return given


@pytest.mark.parametrize("name", [name for name in SHARED if by_position(name)])
def test_what_optax_takes_by_position_is_taken(name):
    assert hasattr(SHARED[name][0](*by_position(name)), "update")


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
