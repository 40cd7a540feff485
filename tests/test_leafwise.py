"""Rules written as a user would: reductions, other shapes, shared state and random keys, on any placement."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from optax import contrib

import jaxopt_large as jl
from jaxopt_large.leafwise import (
    Stage,
    count,
    first_parameters,
    joined,
    lift,
    random_key,
    shaped,
    shared,
    zeros,
)
from jaxopt_large.placement._reductions import ReductionError

from .catalog import like

P = PartitionSpec


# --- LAMB: a norm of each leaf ------------------------------------------------------------------------


def scale_by_trust_ratio():
    def measure(given, g, p, kept):
        return jnp.sum(jnp.square(g)), jnp.sum(jnp.square(p))

    def step(given, g, p, kept, sums):
        update, parameter = (jnp.sqrt(x) for x in sums)
        ratio = jnp.where(
            (update == 0) | (parameter == 0), 1.0, parameter / jnp.where(update == 0, 1.0, update)
        )
        return ratio * g, kept

    return lift("scale_by_trust_ratio", Stage(step, measure=measure, needs_params=True), chained=False)


def lamb(learning_rate):
    return joined(
        "lamb",
        jl.scale_by_adam(eps=1e-6),
        jl.add_decayed_weights(0.1),
        scale_by_trust_ratio(),
        jl.scale_by_learning_rate(learning_rate),
    )


# --- Adafactor: rows and columns ----------------------------------------------------------------------


class FactoredState(NamedTuple):
    count: Any
    v_row: Any
    v_col: Any
    v: Any


def _is_factored(shape):
    return len(shape) == 2 and min(shape) >= 8


def scale_by_factored_rms():
    def decay(kept):
        return 1.0 - (kept.count + 1).astype(jnp.float32) ** -0.8

    def step(decay, g, p, kept):
        square = jnp.square(g) + 1e-30
        if not _is_factored(g.shape):
            v = decay * kept.v + (1 - decay) * square
            return g / jnp.sqrt(v), kept._replace(v=v)
        rows = decay * kept.v_row + (1 - decay) * jnp.mean(square, axis=1)
        columns = decay * kept.v_col + (1 - decay) * jnp.mean(square, axis=0)
        update = g / jnp.sqrt(rows / jnp.mean(rows))[:, None] / jnp.sqrt(columns)[None, :]
        return update, kept._replace(v_row=rows, v_col=columns)

    state = FactoredState(
        count(),
        v_row=shaped(lambda s: s[:1] if _is_factored(s) else (1,)),
        v_col=shaped(lambda s: s[1:] if _is_factored(s) else (1,)),
        v=shaped(lambda s: (1,) if _is_factored(s) else s),
    )
    return lift("scale_by_factored_rms", Stage(step, state, decay, needs="leaf"), chained=False)


def adafactor(learning_rate):
    return joined("adafactor", scale_by_factored_rms(), jl.scale_by_learning_rate(learning_rate))


# --- Prodigy: sums over all leaves --------------------------------------------------------------------


class ProdigyState(NamedTuple):
    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    params0: Any
    estim_lr: Any
    numerator_weighted: Any
    count: Any


class _Rates(NamedTuple):
    old: Any
    new: Any
    step: Any


def prodigy(learning_rate, b1=0.9, b2=0.999, first=1e-6, eps=1e-8):
    b3 = b2**0.5

    def rates(kept):
        n = (kept.count + 1).astype(jnp.float32)
        step = kept.estim_lr * learning_rate * (1 - b2**n) ** 0.5 / (1 - b1**n)
        return _Rates(kept.estim_lr, kept.estim_lr, step)

    def grad_sum(rates, g, kept):
        return b3 * kept.grad_sum + rates.step * rates.old * g / first

    def measure(rates, g, p, kept):
        return jnp.sum(g * (kept.params0 - p)), jnp.sum(jnp.abs(grad_sum(rates, g, kept)))

    def combine(rates, kept, totals):
        inner, norm = totals
        numerator = b3 * kept.numerator_weighted + rates.old / first * rates.step * inner
        new = jnp.maximum(rates.old, numerator / norm)
        return rates._replace(new=new), kept._replace(estim_lr=new, numerator_weighted=numerator)

    def step(rates, g, p, kept, sums):
        mean = b1 * kept.exp_avg + (1 - b1) * rates.old * g
        square = b2 * kept.exp_avg_sq + (1 - b2) * jnp.square(rates.old * g)
        update = -rates.step * mean / (jnp.sqrt(square) + rates.new * eps)
        return update, kept._replace(exp_avg=mean, exp_avg_sq=square, grad_sum=grad_sum(rates, g, kept))

    state = ProdigyState(zeros(), zeros(), zeros(), first_parameters(), shared(first), shared(0.0), count())
    return lift("prodigy", Stage(step, state, rates, measure, combine, needs_params=True), chained=False)


_RULES = {  # ours, optax's, and a learning rate
    "lamb": (lamb, lambda lr: optax.lamb(lr, weight_decay=0.1), 0.01),
    "adafactor": (
        adafactor,
        lambda lr: optax.chain(
            optax.scale_by_factored_rms(min_dim_size_to_factor=8), optax.scale_by_learning_rate(lr)
        ),
        0.01,
    ),
    "prodigy": (prodigy, contrib.prodigy, 1.0),
}


def _params():
    r = np.random.default_rng(0)
    return {
        "w": jnp.asarray(r.normal(size=(16, 24)), jnp.float32),
        "b": jnp.asarray(r.normal(size=(64,)), jnp.float32),
    }


def _run(rule, params, steps=4, apply=None):
    state = rule.init(params)

    def plainly(grads, state, params):
        updates, state = rule.update(grads, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    step = jax.jit(apply or plainly)
    for seed in range(steps):
        params, state = step(like(params, seed), state, params)
    return params, state


@pytest.mark.parametrize("name", _RULES)
def test_they_are_what_optax_has(name):
    ours, theirs, rate = _RULES[name]
    got, state = _run(ours(rate), _params())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want, expected = _run(theirs(rate), _params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)
    shapes = [[x.shape for x in jax.tree.leaves(s)] for s in (state, expected)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", _RULES)
def test_they_take_any_wrapper(name, mesh8):
    ours, _, rate = _RULES[name]
    plain, _ = _run(ours(rate), _params())
    placed = jax.device_put(_params(), NamedSharding(mesh8, P()))
    wrapped = {
        "zero": _run(jl.zero(ours(rate), mesh8, "data", min_bytes=0), placed),
        "apply": _run(ours(rate), _params(), apply=functools.partial(jl.apply, ours(rate))),
        "skip": _run(jl.skip_nonfinite(ours(rate)), _params()),
        "offload": _run(jl.offload(ours(rate), min_bytes=0), placed),
    }
    for how, (got, _) in wrapped.items():
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=how)


def _in_mapped_axis(rule, params, mesh8, text=None):
    zero = jl.zero(rule, axis_name="data", min_bytes=0)
    specs = jl.mapped_state_specs(zero, params, {"data": 8})

    def mapped(function, ins, outs):
        return jax.jit(jax.shard_map(function, mesh=mesh8, in_specs=ins, out_specs=outs, check_vma=False))

    state = mapped(zero.init, P(), specs)(params)
    step = mapped(zero.update, (P(), specs, P()), (P(), specs))
    if text is not None:
        text.append(step.lower(params, state, params).compile())
    for seed in range(4):
        updates, state = step(like(params, seed), state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


@pytest.mark.parametrize("name", ["lamb", "prodigy"])
def test_sums_go_over_the_devices_that_share_a_leaf_in_one_exchange(name, mesh8):
    ours, _, rate = _RULES[name]
    plain, _ = _run(ours(rate), _params())
    compiled = []
    got = _in_mapped_axis(ours(rate), _params(), mesh8, compiled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, plain)
    assert jl.plan.collectives(compiled[0]).count("all-reduce") == 1


def test_placement_is_told_what_needs_whole_leaves(mesh8):
    with pytest.raises(ReductionError, match="adafactor works on whole leaves within the axis 'data'"):
        _in_mapped_axis(adafactor(0.01), _params(), mesh8)


_FORGETFUL = {  # steps that need more than elements, and do not say so
    "reduces over a leaf": lambda given, g, p, kept: (g / jnp.sqrt(jnp.sum(jnp.square(g))), kept),
    "depends on the places": lambda given, g, p, kept: (
        g * jnp.arange(g.size, dtype=g.dtype).reshape(g.shape),
        kept,
    ),
}


@pytest.mark.parametrize("name", _FORGETFUL)
def test_what_a_rule_forgets_to_say_is_found(name, mesh8):
    with pytest.raises(ReductionError, match=name):
        _in_mapped_axis(lift("forgetful", Stage(_FORGETFUL[name]), chained=False), _params(), mesh8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_updates_have_the_gradients_dtype_however_many_segments(dtype):
    params = jax.tree.map(lambda x: x.astype(dtype), _params())
    updates, _ = lamb(0.01).update(params, lamb(0.01).init(params), params)
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


def test_what_is_masked_is_not_measured():
    totals = []

    def combine(given, kept, total):
        totals.append(total)
        return total, kept

    stage = Stage(
        lambda given, g, p, kept, sums: (given * g, kept),
        measure=lambda given, g, p, kept: jnp.sum(jnp.square(g)),
        combine=combine,
        mask="a",
    )
    rule, params = lift("masked", stage, chained=False), {"a": jnp.ones(2), "b": 10 * jnp.ones(3)}
    updates, _ = rule.update(params, rule.init(params), params)
    assert float(totals[0]) == 2
    assert updates["a"].tolist() == [2.0, 2.0]
    assert updates["b"].tolist() == [10.0, 10.0, 10.0]


def test_vectors_and_integers_are_summed_too(mesh8):
    def measure(given, g, p, kept):
        return jnp.stack([jnp.sum(g), jnp.sum(jnp.abs(g))]), jnp.sum(g > 0).astype(jnp.int32)

    def step(given, g, p, kept, sums):
        return g * sums[1].astype(g.dtype) / (1 + sums[0][1]), kept

    stage = Stage(step, measure=measure)
    rule = lift("counted", stage, chained=False)
    plain, _ = _run(rule, _params())
    got = _in_mapped_axis(rule, _params(), mesh8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), got, plain)


def test_sums_that_nobody_measures_are_refused():
    with pytest.raises(ValueError, match="Stage: combine is given without measure"):
        Stage(lambda *args: args, combine=lambda *args: args)


# --- a random key -------------------------------------------------------------------------------------


class NoiseState(NamedTuple):
    key: Any


def noise(seed):
    def step(given, g, p, kept):
        return g + jax.random.normal(kept.key, g.shape, g.dtype), kept

    return lift("noise", Stage(step, NoiseState(random_key(seed))), chained=False)


def test_each_leaf_draws_its_own_and_each_step_anew():
    rule, params = noise(0), {"a": jnp.zeros(64), "b": jnp.zeros(64)}
    state, seen = rule.init(params), []
    for _ in range(2):
        updates, state = jax.jit(rule.update)(params, state)
        seen += jax.tree.leaves(updates)
    assert len({tuple(np.asarray(x).tolist()) for x in seen}) == 4
    again, _ = rule.update(params, rule.init(params))
    np.testing.assert_array_equal(again["a"], seen[0])
    assert str(jl.explain(rule, params))


def test_random_numbers_for_a_share_are_refused(mesh8):
    with pytest.raises(ReductionError, match="draws random numbers by shape"):
        _in_mapped_axis(noise(0), _params(), mesh8)


def test_a_state_with_a_key_is_converted():
    params = {"w": jnp.ones((8, 8))}
    before, after = (optax.chain(noise(0), jl.adam(rate)) for rate in (1e-3, 1e-2))
    state = jl.convert(before.init(params), before, after, params)
    assert jnp.all(jax.random.key_data(state[0].key) == jax.random.key_data(jax.random.key(0)))
