"""Conversion, report and explanation of stored states."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large._encoded import is_encoded


def _params():
    r = np.random.default_rng(0)
    return {"w": jnp.asarray(r.normal(size=(64, 128)), jnp.float32), "b": jnp.ones(24)}


def _after(rule, steps=3):
    params, state = _params(), rule.init(_params())
    for seed in range(steps):
        grads = jax.tree.map(
            lambda p, s=seed: jnp.asarray(np.random.default_rng(s).normal(size=p.shape) + 0.5, jnp.float32),
            params,
        )
        _, state = rule.update(grads, state, params)
    return state


def _stored(rule):
    return jl.stored(rule, mu=jl.int8(), nu=jl.int8())


def test_from_float32_to_int8_and_back():
    plain, stored = jl.adamw(1e-2), _stored(jl.adamw(1e-2))
    before = _after(plain)
    state = jl.convert(before, plain, stored)
    assert jax.tree.structure(state) == jax.tree.structure(stored.init(_params()))
    back = jl.convert(state, stored, plain)
    assert int(back[0].count) == 3
    np.testing.assert_array_equal(back[0].mu["b"], before[0].mu["b"])
    for field in ("mu", "nu"):
        got, want = getattr(back[0], field)["w"], getattr(before[0], field)["w"]
        assert np.linalg.norm(got - want) < 0.02 * np.linalg.norm(want)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: optax.adamw(1e-2), lambda: jl.adamw(1e-2)),
        (lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)), lambda: jl.adam(1e-2)),
        (lambda: optax.sgd(1e-2, momentum=0.9), lambda: jl.sgd(1e-2, momentum=0.9)),
        (lambda: optax.lion(1e-3), lambda: jl.skip_nonfinite(jl.lion(1e-3))),
    ],
)
def test_optax_states_become_ours(theirs, ours):
    with jax.numpy_dtype_promotion("standard"):
        state = _after(theirs())
    got = jl.convert(state, theirs(), ours(), _params())
    old, new = ([np.asarray(x) for x in jax.tree.leaves(t) if x.ndim] for t in (state, got))
    assert len(new) >= 2
    jax.tree.map(np.testing.assert_array_equal, new, old)


def test_conversion_refuses_what_it_cannot_know():
    plain = jl.adam(1e-2)
    with pytest.raises(ValueError, match="convert: the old state has 0 fields 'trace', the new one 1 at b"):
        jl.convert(plain.init(_params()), plain, jl.sgd(1e-2, momentum=0.9))
    with pytest.raises(
        ValueError, match=r"convert: no part of the state has the parameters' shapes. Pass params="
    ):
        jl.convert(plain.init(_params()), jl.lion(1e-3), plain)


def test_conversion_refuses_other_shapes():
    narrow, wide = (optax.scale_by_factored_rms(min_dim_size_to_factor=n) for n in (32, 128))
    params = {"w": jnp.ones((64, 200))}
    with pytest.raises(ValueError, match="v_row has shape"):
        jl.convert(narrow.init(params), narrow, wide, params)


def test_conversion_keeps_what_split_has_besides_the_parameters():
    rule_from = jl.stored(jl.sgd(1e-2, momentum=0.9), trace=jl.int8(), params=jl.split())
    rule_to = jl.stored(jl.sgd(1e-2, momentum=0.9), params=jl.split(), seed=7)
    params = {"w": jnp.full((64, 128), 1.001, jnp.bfloat16)}
    _, state = rule_from.update(params, rule_from.init(params), params)
    got = jl.convert(state, rule_from, rule_to, params)
    assert np.any(np.asarray(state.residuals["w"]))
    np.testing.assert_array_equal(got.residuals["w"], state.residuals["w"])
    assert (int(got.step), int(got.seed)) == (1, 7)


class _CountedState(NamedTuple):
    step: jax.Array
    residuals: optax.Params


def test_conversion_takes_fields_of_a_rule_that_are_called_like_those_of_stored():
    def init(params):
        return _CountedState(jnp.zeros((), jnp.int32), params)

    def update(updates, state, params=None):
        del params
        return updates, _CountedState(state.step + 1, updates)

    plain, params = optax.GradientTransformation(init, update), _params()
    stored = jl.stored(plain, residuals=jl.int8())
    _, state = plain.update(params, plain.init(params))
    got = jl.convert(state, plain, stored, params)
    assert int(got.inner.step) == 1
    assert int(got.step) == 0
    np.testing.assert_allclose(got.inner.residuals["b"], params["b"])


def test_report():
    plain, stored = jl.adamw(1e-2), _stored(jl.adamw(1e-2))
    state, shadow = _after(stored), _after(plain)
    report = jl.storage_report(state, shadow)
    assert [(u.path, u.format) for u in report] == [("inner/0/mu/w", "int8"), ("inner/0/nu/w", "int8")]
    for u in report:
        assert 1 / 128 <= u.saturated < 0.05
        assert 0 <= u.smallest < 0.5
        assert 0 < u.least_scale < u.most_scale
        assert 0 < u.error < 0.05
    assert "int8" in str(report)
    assert "saturated" in str(report)
    assert np.isnan(jl.storage_report(state)[0].error)
    with pytest.raises(ValueError, match="the shadow has 1 leaves; the state has"):
        jl.storage_report(state, {"w": jnp.ones(3)})


def test_report_of_a_chain_beside_a_shadow():
    rule, plain = (optax.chain(optax.clip(1.0), wrap(jl.adam(1e-2))) for wrap in (_stored, lambda r: r))
    with jax.numpy_dtype_promotion("standard"):
        report = jl.storage_report(_after(rule), _after(plain))
    assert [u.path for u in report] == ["1/inner/0/mu/w", "1/inner/0/nu/w"]
    assert all(0 < u.error < 0.05 for u in report)
    with pytest.raises(TypeError, match=r"storage_report: the state has no values. Pass arrays"):
        jl.storage_report(jax.eval_shape(rule.init, _params()))
    shadow = _after(plain)[1][0].nu
    with pytest.raises(ValueError, match="storage_report: the shadow has 2 leaves; the state has 5"):
        jl.storage_report(_after(rule), shadow)
    wrong = jax.tree.map(lambda x: x.reshape(-1), _after(plain))
    with pytest.raises(ValueError, match=r"the shadow has shape \(8192,\) at 1/inner/0/mu/w; the state has"):
        jl.storage_report(_after(rule), wrong)


def test_explanation():
    rows = jl.explain(_stored(jl.adamw(1e-2)), {**_params(), "embed": jnp.ones((64, 128))})
    found = {(r.path, r.where): r.reason for r in rows}
    assert found["w", "nu: int8"] == "given; never negative"
    assert found["w", "mu: int8"] == "given"
    assert found["b", "mu: float32"] == "24 elements, under 4096"
    assert found["embed", "nu: float32"] == "a second moment of an embedding, a norm or a router"
    assert {r.bytes for r in rows if r.where == "nu: int8"} == {64 * 128 + 4 * 64}


def test_checkpoints_hold_codes(tmp_path):
    rule = _stored(jl.adamw(1e-2))
    state = _after(rule)
    jl.save(tmp_path / "state", state)
    back = jl.restore(tmp_path / "state", rule.init(_params()))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    # a transform before it: the codes of each field find their place again
    changed = optax.chain(jl.clip_by_global_norm(1.0), rule)
    back, report = jl.restore_changed(tmp_path / "state", changed.init(_params()))
    assert not report.new
    assert not report.dropped
    kept = [x for x in jax.tree.leaves(back, is_leaf=is_encoded) if is_encoded(x)]
    want = [x for x in jax.tree.leaves(state, is_leaf=is_encoded) if is_encoded(x)]
    jax.tree.map(np.testing.assert_array_equal, kept, want)
    plain = jl.convert(jl.restore(tmp_path / "state", rule.init(_params())), rule, jl.adamw(1e-2))
    assert plain[0].nu["w"].dtype == jnp.float32
