"""What a state and a checkpoint have in common after the rule has changed."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large.checkpoint._identity import identities

from .catalog import like

pytest.importorskip("orbax.checkpoint")


class Linear(NamedTuple):
    w: Any
    b: Any


class Network(NamedTuple):
    inner: Linear  # called like a wrapper's field
    head: Linear


def _equinox():
    eqx = pytest.importorskip("equinox")
    return eqx.filter(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), eqx.is_array)


def _nnx():
    nnx = pytest.importorskip("flax.nnx")
    return nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)


_PARAMS = {
    "dict": lambda: {"w": jnp.ones((3, 2)), "b": jnp.ones(2)},
    "NamedTuple": lambda: Linear(jnp.ones((3, 2)), jnp.ones(2)),
    "nested NamedTuple": lambda: Network(Linear(jnp.ones(2), jnp.ones(2)), Linear(jnp.ones(2), jnp.ones(2))),
    "Equinox": _equinox,
    "NNX": _nnx,
}


def _everything(params):
    return jax.tree.map(lambda _: True, params)


_RULES = {
    "alone": lambda rule: rule,
    "chain": lambda rule: optax.chain(optax.trace(0.9), rule, optax.ema(0.5)),
    "MultiSteps": lambda rule: optax.MultiSteps(rule, 2).gradient_transformation(),
    "inject_hyperparams": lambda rule: optax.inject_hyperparams(
        lambda decay: optax.chain(rule, optax.add_decayed_weights(decay))
    )(0.1),
    "masked": lambda rule: optax.masked(rule, _everything),
    "partition": lambda rule: jl.partition({"*": rule}),
    "skip_nonfinite": jl.skip_nonfinite,
    "accumulate": lambda rule: jl.accumulate(rule, 2),
    "several": lambda rule: jl.skip_nonfinite(
        optax.chain(optax.trace(0.9), jl.partition({"*": jl.accumulate(rule, 2)}))
    ),
}


def _numbered(tree, start=1):
    """A value of its own for every leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef.unflatten([jnp.full_like(x, start + i) for i, x in enumerate(leaves)])


def _adam_of(tree):
    def is_adam(x):
        return isinstance(x, optax.ScaleByAdamState)

    (found,) = filter(is_adam, jax.tree.leaves(tree, is_leaf=is_adam))
    return found


def _same(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("after", _RULES)
@pytest.mark.parametrize("params", _PARAMS)
def test_moments_are_found_whatever_holds_them(params, after, tmp_path):
    params = _PARAMS[params]()
    saved = _numbered(_RULES["chain"](optax.adam(1.0)).init(params))
    jl.save(tmp_path / "c", {"params": params, "state": saved})
    fresh = _numbered({"params": params, "state": _RULES[after](optax.adam(1.0)).init(params)}, -200)
    got, report = jl.restore_changed(tmp_path / "c", fresh)
    _same(_adam_of(got["state"]), _adam_of(saved))
    _same(got["params"], params)
    assert not report.ambiguous
    # and nothing else came out of the adam or went into another field
    for new, old in report.kept.items():
        assert next(f for f in ("params", "/mu", "/nu", "/count", "/trace", "/ema") if f in new) in old


@pytest.mark.parametrize("before", _RULES)
def test_a_wrapper_may_go(before, tmp_path):
    params = _PARAMS["NamedTuple"]()
    saved = _numbered(_RULES[before](optax.adam(1.0)).init(params))
    jl.save(tmp_path / "c", saved)
    got, report = jl.restore_changed(tmp_path / "c", optax.adam(1.0).init(params))
    _same(_adam_of(got), _adam_of(saved))
    assert not report.new
    assert not report.ambiguous


def test_what_a_field_keeps_in_a_class_of_its_own_belongs_to_the_field():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Encoded:
        codes: Any
        scales: Any

    Encoded.__module__ = "jaxopt_large._encoded"
    encoded = {"w": Encoded(jnp.zeros(4, jnp.int8), jnp.ones(1))}
    state = (optax.ScaleByAdamState(jnp.zeros((), jnp.int32), encoded, encoded),)
    names = {path: identity.name for path, identity in identities(state).items()}
    assert names["0/mu/w/codes"] == "ScaleByAdamState.mu/w/codes"
    assert names["0/nu/w/scales"] == "ScaleByAdamState.nu/w/scales"
    assert len(set(names.values())) == 5


def test_states_of_other_libraries():
    class Moments(NamedTuple):
        mu: Any

    class WrappedState(NamedTuple):
        rule: Any

    moments = Moments(Linear(jnp.ones(2), jnp.ones(1)))
    for state in (moments, optax.MaskedState((moments,)), {"state": optax.PartitionState({"*": moments})}):
        assert {i.name for i in identities(state).values()} == {"Moments.mu/w", "Moments.mu/b"}
    wrapped = identities(WrappedState((optax.TraceState(moments.mu),)))
    assert {i.name for i in wrapped.values()} == {"TraceState.trace/w", "TraceState.trace/b"}


def _two_adams(tmp_path):
    params = {"w": jnp.ones(3)}
    saved = _numbered(optax.chain(optax.scale_by_adam(b1=0.5), optax.scale_by_adam(b1=0.9)).init(params))
    jl.save(tmp_path / "c", saved)
    return params, saved


def test_of_two_states_alike_none_is_taken_for_the_other(tmp_path):
    params, _ = _two_adams(tmp_path)
    fresh = _numbered(optax.scale_by_adam(b1=0.9).init(params), -9)
    got, report = jl.restore_changed(tmp_path / "c", (fresh,))
    _same(got, (fresh,))
    assert (len(report.kept), set(report.new)) == (0, {"0/count", "0/mu/w", "0/nu/w"})
    assert len(report.dropped) == 6
    assert report.ambiguous["0/mu/w"] == ("0/mu/w", "1/mu/w")
    assert "ambiguous  0/mu/w: 0/mu/w or 1/mu/w" in str(report)


def test_one_more_of_a_kind_is_ambiguous_too(tmp_path):
    params = {"w": jnp.ones(3)}
    jl.save(tmp_path / "c", optax.chain(optax.ema(0.5)).init(params))
    fresh = _numbered(optax.chain(optax.ema(0.9), optax.ema(0.5)).init(params))
    got, report = jl.restore_changed(tmp_path / "c", fresh)
    _same(got, fresh)
    assert report.ambiguous["1/ema/w"] == ("0/ema/w",)


def test_as_many_of_a_kind_match_in_order(tmp_path):
    params, saved = _two_adams(tmp_path)
    rule = optax.chain(optax.scale_by_adam(), optax.trace(0.9), optax.scale_by_adam())
    got, report = jl.restore_changed(tmp_path / "c", rule.init(params))
    _same((got[0], got[2]), saved)
    assert not report.ambiguous


@pytest.mark.parametrize("renamed", [{"0": "1"}, {"0/mu": "1/mu", "0/nu/w": "1/nu/w", "0/count": "1/count"}])
def test_the_user_decides(renamed, tmp_path):
    params, saved = _two_adams(tmp_path)
    like = (optax.scale_by_adam().init(params),)
    got, report = jl.restore_changed(tmp_path / "c", like, renamed=renamed)
    _same(got, saved[1:])
    assert (set(report.dropped), report.ambiguous) == ({"0/count", "0/mu/w", "0/nu/w"}, {})


def test_one_origin_for_several(tmp_path, mesh8):
    params = {"w": jnp.ones(16), "v": jnp.ones(3)}
    saved = _numbered(optax.adam(1.0).init(params))
    jl.save(tmp_path / "c", saved)
    rule = jl.partition({"w": jl.zero(optax.adam(1.0), mesh8, "data", min_bytes=0), "v": optax.adam(1.0)})
    fresh = rule.init(params)
    counts = [f"inner_states/{glob}/inner_state/0/count" for glob in "wv"]
    _, report = jl.restore_changed(tmp_path / "c", fresh)
    assert set(report.ambiguous) == set(counts)
    got, report = jl.restore_changed(tmp_path / "c", fresh, renamed=dict.fromkeys(counts, "0/count"))
    assert not report.new
    states = got.inner_states
    for adam in (states["w"].inner_state.inner[0], states["v"].inner_state[0]):
        assert int(adam.count) == int(saved[0].count)
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(a.sharding)), got, fresh)
    states["v"].inner_state[0].count.delete()  # as donation does
    assert int(states["w"].inner_state.inner[0].count) == int(saved[0].count)


def test_renamed_must_fit(tmp_path):
    params, _ = _two_adams(tmp_path)
    like = (optax.scale_by_adam().init(params),)
    with pytest.raises(ValueError, match="renamed names what the tree does not have, got '7'; the nearest"):
        jl.restore_changed(tmp_path / "c", like, renamed={"7": "1"})
    with pytest.raises(ValueError, match="what the checkpoint does not have, got '7/count' at 0/count"):
        jl.restore_changed(tmp_path / "c", like, renamed={"0": "7"})
    with pytest.raises(ValueError, match=r"has int32\[\] at 1/count, the tree has float32\[3\] at 0/mu/w"):
        jl.restore_changed(tmp_path / "c", like, renamed={"0/mu/w": "1/count"})


def test_a_glob_may_change(tmp_path):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    saved = _numbered(jl.partition({"a": optax.adam(1.0), "*": optax.adam(1.0)}).init(params))
    jl.save(tmp_path / "c", saved)
    rule = jl.partition({"a*": optax.adam(1.0), "*": optax.adam(1.0)})
    got, report = jl.restore_changed(tmp_path / "c", rule.init(params))
    assert (len(report.kept), report.new, report.dropped) == (6, (), ())
    for old, new in (("a", "a*"), ("*", "*")):
        _same(got.inner_states[new], saved.inner_states[old])


def test_a_group_that_goes_leaves_the_others(tmp_path):
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    saved = _numbered(jl.partition({"a": optax.adam(1.0), "b": optax.adam(1.0)}).init(params))
    jl.save(tmp_path / "c", saved)
    got, report = jl.restore_changed(
        tmp_path / "c", jl.partition({"a": optax.sgd(1.0), "b": optax.adam(1.0)}).init(params)
    )
    _same(got.inner_states["b"], saved.inner_states["b"])
    assert (len(report.kept), len(report.dropped), report.ambiguous) == (3, 3, {})


def test_a_rule_may_change_between_save_and_restore(tmp_path):
    params = {"a": [jnp.ones(3), jnp.ones((2, 2))], "b": jnp.ones(4)}
    old = optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-2), optax.trace(0.9))
    _, saved = old.update(like(params, 0), old.init(params), params)
    jl.save(tmp_path / "c", {"params": params, "state": saved})
    new = jl.skip_nonfinite(optax.chain(optax.ema(0.5), jl.adam(1e-2), jl.clip_by_global_norm(1.0)))
    fresh = jax.tree.map(lambda x: x + 7, new.init(params))
    got, report = jl.restore_changed(tmp_path / "c", {"params": params, "state": fresh})
    jax.tree.map(np.testing.assert_array_equal, got["state"].inner[1], saved[1])
    jax.tree.map(np.testing.assert_array_equal, got["state"].inner[0], fresh.inner[0])
    assert len(report.kept) == 3 + 1 + 6
    assert set(report.new) == {
        "state/skipped",
        "state/inner/0/count",
        "state/inner/0/ema/a/0",
        "state/inner/0/ema/a/1",
        "state/inner/0/ema/b",
    }
    assert set(report.dropped) == {"state/2/trace/a/0", "state/2/trace/a/1", "state/2/trace/b"}
    assert str(report).splitlines()[0] == "kept 10, new 5, dropped 3"


def test_arrays_of_another_shape_count_as_new(tmp_path):
    jl.save(tmp_path / "c", jl.adam(1e-2).init({"w": jnp.ones(3), "v": jnp.ones(2)}))
    _, report = jl.restore_changed(tmp_path / "c", jl.adam(1e-2).init({"w": jnp.ones(4), "v": jnp.ones(2)}))
    assert set(report.new) == set(report.dropped) == {"0/mu/w", "0/nu/w"}
    shapes = jax.eval_shape(jl.adam(1e-2).init, {"w": jnp.ones(4), "v": jnp.ones(2)})
    with pytest.raises(ValueError, match="the checkpoint has no such array, and none was given at 0/mu/w"):
        jl.restore_changed(tmp_path / "c", shapes)
