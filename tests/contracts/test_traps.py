"""What optax 0.2.8 gets wrong at scale, a test a row: behaviours that this library must not share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_large as jl

from ..catalog import RULES, like, mixed_params

P = PartitionSpec


def test_01_the_norm_of_bfloat16_leaves_is_a_float32_sum():
    leaves = [jnp.ones(640, jnp.bfloat16)] * 1000
    assert float(jl.global_norm(leaves)) == pytest.approx(640000**0.5, rel=1e-6)
    assert float(jl.global_norm([jnp.full(640, 300.0, jnp.float16)])) == pytest.approx(
        300 * 640**0.5, rel=1e-6
    )


@pytest.mark.parametrize(
    "name", ["adam", "adamw", "nadam", "radam", "yogi", "adabelief", "laprop", "rmsprop"]
)
def test_02_second_moments_of_bfloat16_parameters_decay(name):
    rule, params = getattr(jl, name)(1e-3), jnp.ones(4, jnp.bfloat16)
    _, state = rule.update(jnp.full(4, 100.0, jnp.bfloat16), rule.init(params), params)
    before = optax.tree_utils.tree_get(state, "nu")
    zero = jnp.zeros(4, jnp.bfloat16)
    later = jax.jit(lambda s: jax.lax.fori_loop(0, 2000, lambda _, s: rule.update(zero, s, params)[1], s))(
        state
    )
    after = optax.tree_utils.tree_get(later, "nu")
    if name == "yogi":  # by additions: without a gradient it stays
        assert float(after[0]) == float(before[0])
    else:
        assert float(after[0]) < 0.2 * float(before[0])


def test_03_injected_hyperparameters_do_not_round_decays_to_one():
    params = jnp.zeros(2, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        rule = optax.inject_hyperparams(jl.adam)(1e-3, b2=0.999)
        updates, _ = rule.update(params, rule.init(params), params)
    assert updates.tolist() == [0.0, 0.0]


def test_04_a_broken_micro_batch_does_not_stay():
    rule, params = jl.accumulate(jl.skip_nonfinite(jl.sgd(1.0)), 2), jnp.ones(3)
    state = rule.init(params)
    for grads in (jnp.full(3, jnp.nan), jnp.ones(3), jnp.ones(3), jnp.ones(3)):
        updates, state = rule.update(grads, state, params)
        assert bool(jnp.all(jnp.isfinite(updates)))
    assert updates.tolist() == [-1.0] * 3


def test_05_the_state_of_sharded_parameters_is_sharded_and_the_step_compiles_once(mesh8):
    params = {"w": jax.device_put(jnp.ones((64, 128)), NamedSharding(mesh8, P("data")))}
    for make in (jl.adamw, jl.adafactor, jl.sm3, jl.prodigy):
        rule = jl.zero(make(1e-2), mesh8, "data", min_bytes=0)
        state, step = rule.init(params), jax.jit(rule.update)
        for _ in range(2):
            _, state = step(params, state, params)
        assert step._cache_size() == 1, make
        large = [x for x in jax.tree.leaves(state) if x.size >= 64 * 128]
        assert all(x.addressable_shards[0].data.size == x.size // 8 for x in large)


def test_06_stacked_matrices_go_to_the_matrix_rule_and_norms_do_not():
    params = {"layers": {"up": jnp.ones((3, 8, 16)), "norm": jnp.ones((3, 8))}, "embed": jnp.ones((32, 8))}
    rows = jl.explain(jl.muon(0.1, roles={"*up": "layers in out"}), params).rows
    groups = {row.path: row.field for row in rows if row.field in ("mu", "nu")}
    assert {path for path, field in groups.items() if field == "nu"} >= {"embed", "layers/norm"}


@pytest.mark.parametrize(
    "name", ["lamb", "lars", "novograd", "adafactor", "sm3", "prodigy", "came", "adam_mini"]
)
def test_07_reductions_inside_a_mapped_axis_are_of_whole_leaves(name, mesh8):
    case = next(case for case in RULES if case.name == name)
    params = {"w": jnp.linspace(-1.0, 1.0, 384).reshape(16, 24), "odd": jnp.ones((9, 7))}
    plain, zero = case.rule(), jl.zero(case.rule(), axis_name="data", min_bytes=0)
    expected, _ = plain.update(like(params, 0), plain.init(params), params)

    @functools.partial(jax.pmap, axis_name="data", in_axes=(None, None, 0))
    def once(params, grads, _):
        return zero.update(grads, zero.init(params), params)[0]

    got = once(params, like(params, 0), jnp.arange(8))
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(np.asarray(g)[3], e, rtol=2e-5, atol=1e-6), got, expected
    )


def test_08_every_buffer_is_donated_from_the_first_step():
    for make in (jl.madgrad, jl.prodigy, jl.dog, jl.cocob, jl.asgd):
        rule, params = make(0.1), jnp.ones((16, 16))
        state = rule.init(params)
        step = jax.jit(lambda p, s, r=rule: r.update(jnp.ones_like(p), s, p), donate_argnums=(0, 1))
        step(params, state)
        assert all(x.is_deleted() for x in jax.tree.leaves((params, state)) if x.size > 1), make


@pytest.mark.parametrize("name", ["adafactor", "novograd", "sm3", "muon", "came", "adam_mini"])
def test_09_specs_follow_the_parameters(name, mesh8):
    rule = getattr(jl, name)(1e-2)
    placed = {"w": jax.device_put(jnp.ones((256, 512)), NamedSharding(mesh8, P("data", None)))}
    for x, sharding in zip(
        jax.tree.leaves(jax.eval_shape(rule.init, placed)),
        jax.tree.leaves(jl.state_shardings(rule, placed)),
        strict=True,
    ):
        if x.shape == (256, 512):
            assert sharding.spec[0] == "data"
        if x.shape == (256,):
            assert sharding.spec == P("data")


def test_10_small_updates_of_bfloat16_parameters_add_up():
    rule = jl.stored(jl.sgd(1.0), params=jl.rounded())
    params = jnp.ones((64, 128), jnp.bfloat16)
    state = rule.init(params)
    step = jax.jit(lambda p, s: jl.apply(rule, jnp.full_like(p, -1e-3), s, p))
    for _ in range(200):
        params, state = step(params, state)
    assert float(jnp.mean(params.astype(jnp.float32))) == pytest.approx(1.2, rel=0.01)


def test_11_equal_leaves_share_one_program():
    def lines(count):
        params = {str(i): jnp.ones((4, 4)) for i in range(count)}
        rule = jl.adafactor(1e-2, min_dim_size_to_factor=2)
        return len(jax.jit(rule.update).lower(params, rule.init(params), params).as_text().splitlines())

    assert lines(80) - lines(40) < 40 * 20


def test_12_checkpoints_are_named(tmp_path):
    params = {"w": jnp.ones((4, 8))}
    before = jl.adam(0.1)
    _, state = before.update(params, before.init(params), params)
    jl.save(tmp_path / "c", {"state": state})
    after = optax.chain(jl.clip_by_global_norm(1.0), jl.adam(0.1))
    back, _ = jl.restore_changed(tmp_path / "c", {"state": after.init(params)})
    assert jax.tree.leaves(optax.tree_utils.tree_get(back, "nu"))[0].tolist() == state[0].nu["w"].tolist()


def test_13_strict_promotion_and_wrong_decays_and_the_first_step_of_rprop():
    assert jax.config.jax_numpy_dtype_promotion == "strict"
    with pytest.raises(ValueError, match=r"b1 is out of range, got 1\.5"):
        jl.adam(1e-3, b1=1.5)
    params = mixed_params()
    rule = jl.rprop(0.5)
    updates, _ = rule.update(like(params, 0), rule.init(params), params)
    assert set(np.abs(np.asarray(updates["odd"])).ravel()) == {0.5}
