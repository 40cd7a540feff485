"""Rules of matrices under storage, placement, accumulation, guards, one-pass apply and checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl

from .cases import ROLES, every_rule, gradients, leaf, params

P = PartitionSpec
_ROWS = P("data")


def _steps(rule, tree, grads, *, fast=False):
    state = rule.init(tree)

    @jax.jit
    def step(tree, state, g):
        if fast:
            return jl.apply(rule, g, state, tree)
        updates, state = rule.update(g, state, tree)
        return optax.apply_updates(tree, updates), state

    for g in grads:
        tree, state = step(tree, state, g)
    return tree, state


def _close(a, b, rtol=1e-5, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=rtol, atol=atol)


@every_rule
def test_apply_is_update_and_apply_updates(case):
    rule, grads = case.rule(roles=ROLES), gradients(params(), 2)
    _close(_steps(rule, params(), grads, fast=True), _steps(rule, params(), grads))


@every_rule
def test_in_a_chain_in_a_partition_and_under_guards(case):
    inner = case.rule(roles={"stack": "layers in out"})
    rule = optax.chain(
        jl.clip_by_global_norm(1.0),
        jl.skip_nonfinite(jl.partition({"bias|embed": jl.freeze(), "qkv": jl.sgd(0.1), "*": inner})),
    )
    tree, grads = params(), gradients(params(), 2)
    after, state = _steps(rule, tree, grads)
    assert np.array_equal(after["bias"], tree["bias"])
    assert not np.array_equal(after["stack"], tree["stack"])
    bad = {**grads[0], "wide": jnp.full_like(grads[0]["wide"], jnp.nan)}
    skipped, kept = rule.update(bad, state, after)
    assert all(not np.any(u) for u in jax.tree.leaves(skipped))
    floats = [(a, b) for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True) if a.ndim]
    assert all(np.array_equal(a, b) for a, b in floats)


@every_rule
def test_accumulated_gradients_are_their_mean(case):
    tree, grads = params(), gradients(params(), 4)
    rule = case.rule(roles=ROLES)
    means = [jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in (grads[:2], grads[2:])]
    got, _ = _steps(jl.accumulate(rule, 2), tree, grads)
    _close(got, _steps(rule, tree, means)[0])


def _large(dtype=jnp.float32):
    return {
        "w": leaf(0, 128, 256, dtype=dtype),
        "v": leaf(1, 256, 128, dtype=dtype),
        "bias": leaf(2, 16, dtype=dtype),
    }


@every_rule
def test_momentum_in_8_bits_follows_that_in_32(case):
    tree, grads = _large(), gradients(_large(), 5)
    wide = {"rank": 64} if case.name in ("galore", "apollo") else {}  # of fewer rows nothing is in 8 bits
    plain, _ = _steps(case.rule(**wide), tree, grads)
    kept, _ = _steps(jl.stored(case.rule(**wide), mu=jl.int8()), tree, grads)
    moved = np.linalg.norm(plain["w"] - tree["w"])
    # of SOAP's second moments, in a basis that is new, some are small beside the errors of all entries
    most = 0.3 if case.name == "soap" else 0.1
    assert 0 < np.linalg.norm(kept["w"] - plain["w"]) < most * moved


def test_muon_in_int8_with_rounded_parameters_takes_3_1_bytes():
    tree = {
        "w": jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16),
        "v": jax.ShapeDtypeStruct((4096, 1024), jnp.bfloat16),
    }
    found = jl.explain(jl.stored(jl.muon(0.02), mu=jl.int8(), params=jl.rounded()), tree)
    count = sum(x.size for x in tree.values())
    assert found.state_bytes + found.parameter_bytes <= 3.1 * count


@every_rule
def test_the_same_codes_on_any_mesh(case):
    """Stored, divided, and worked on by their owners."""
    tree, grads = _large(), gradients(_large(), 3)
    make = lambda: jl.stored(case.precise(), mu=jl.int8())  # noqa: E731
    want, _ = _steps(make(), tree, grads)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, P("data"))
    got, _ = _steps(jl.zero(make(), mesh, "data"), jax.device_put(tree, NamedSharding(mesh, P())), grads)
    _close(got, want, rtol=1e-4, atol=2e-5)  # a last bit may decide about a code
    divided = jax.device_put(tree, {k: spread if k != "bias" else NamedSharding(mesh, P()) for k in tree})
    _close(_steps(make(), divided, grads)[0], want, rtol=1e-4, atol=2e-5)


@every_rule
def test_a_run_goes_on_on_another_mesh(case, tmp_path):
    """Uninterrupted and resumed are equal, and not as from a fresh state."""
    tree, grads = params(), gradients(params(), 4)

    def on(sizes, tree):
        mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
        specs = {k: P(next(iter(sizes))) if k in ("wide", "again", "tall") else P() for k in params()}
        placed = jax.device_put(tree, {k: NamedSharding(mesh, s) for k, s in specs.items()})
        return jl.zero(case.rule(roles=ROLES), mesh, next(iter(sizes)), min_bytes=0), placed

    whole, placed = on({"data": 8}, tree)
    uninterrupted, _ = _steps(whole, placed, grads)
    half, state = _steps(whole, placed, grads[:2])
    jl.save(tmp_path / "step", {"params": half, "state": state})
    rule, like = on({"data": 4, "model": 2}, tree)
    read = jl.restore(tmp_path / "step", {"params": like, "state": rule.init(like)})

    def rest(state):
        now = read["params"]
        for g in grads[2:]:
            updates, state = jax.jit(rule.update)(g, state, now)
            now = jax.tree.map(lambda p, u: p + jax.device_put(u, p.sharding), now, updates)
        return now

    _close(rest(read["state"]), uninterrupted)
    fresh = rest(rule.init(read["params"]))
    assert np.abs(np.asarray(fresh["wide"]) - np.asarray(uninterrupted["wide"])).max() > 1e-4


@every_rule
def test_structure_is_fixed_by_init_and_a_step_compiles_once(case):
    rule, tree = case.rule(roles=ROLES), params()
    step = jax.jit(rule.update, donate_argnums=1)
    state = rule.init(tree)
    before = jax.tree.structure(state)
    for g in gradients(tree, 3):
        updates, state = step(g, state, tree)
        assert jax.tree.structure(state) == before
    assert step._cache_size() == 1
    assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@every_rule
def test_optax_maps_over_what_is_like_the_parameters(case):
    rule = case.rule(roles=ROLES)
    state = rule.init(params())
    mapped = optax.tree_map_params(rule, lambda x: x + 7, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    keyed = jax.tree_util.tree_flatten_with_path(mapped)[0]
    moments = [x for path, x in keyed if any(getattr(k, "name", "") == "mu" for k in path)]
    assert len(moments) == len(params())
    assert all(np.array_equal(x, jnp.full_like(x, 7)) for x in moments)


def test_explain_says_who_works_on_what():
    mesh = jax.sharding.AbstractMesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def shape(*s, spec=_ROWS):
        return jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, spec))

    tree = {f"l{n}": shape(64, 128) for n in range(4)} | {
        "stack": shape(6, 128, 64, spec=P(None, "data")),
        "embed": shape(256, 64),
        "own": shape(8, 32, 32),
    }
    found = jl.explain(jl.muon(0.02, roles={"stack|own": jl.roles.stack()}), tree)
    rows = {row.path: row for row in found.matrices}
    assert "embed" not in rows
    assert [rows[f"l{n}"].owner for n in range(4)] == [f"data {n}" for n in range(4)]
    assert rows["stack"].owner == "data 0-1 4-7"  # after the four leaves, which lie alike
    assert rows["own"].owner == "its own along data"
    assert rows["own"].bytes == 0
    assert rows["l0"].bytes == 2 * 4 * 64 * 128 // 8
    assert {rows["l0"].group, rows["stack"].group, rows["own"].group} == {"64x128", "32x32"}
    assert rows["l0"].waste == pytest.approx(1 - 10 / 16)
    assert rows["own"].waste == 0.0
    assert rows["l0"].flops == 8 * 64 * 64 * 128 + 28 * 64**3
    assert "matrices" in found.to_json()
    text = str(found)
    assert "layers in out" in text
    assert "its own along data" in text
    alone = jl.explain(jl.muon(0.02), {"w": jnp.ones((8, 8))}).matrices[0]
    assert (alone.owner, alone.bytes, alone.waste) == ("-", 0, 0.0)


@pytest.mark.parametrize(("layers", "most"), [(6, 0.35), pytest.param(48, 0.15, marks=pytest.mark.full)])
def test_one_program_for_each_group_however_many_leaves(layers, most):
    """Lines of the compiled program, and products of matrices: beside optax's, which has them for each leaf."""
    shapes = [(64, 64), (64, 128), (96, 64), (64, 256), (128, 128), (32, 96)]
    tree = {
        f"l{i}/{j}": jax.ShapeDtypeStruct(s, jnp.float32) for i in range(layers) for j, s in enumerate(shapes)
    }

    def lowered(rule):
        return jax.jit(rule.update).lower(tree, jax.eval_shape(rule.init, tree), tree)

    ours = lowered(jl.scale_by_muon())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        numbers = jax.tree.map(lambda p: optax.contrib.MuonDimensionNumbers(), tree)
        theirs = lowered(optax.contrib.scale_by_muon(weight_dimension_numbers=numbers))
    assert ours.as_text().count("stablehlo.dot_general") <= 18 * len(shapes)
    lines = [len(x.compile().as_text().splitlines()) for x in (ours, theirs)]
    assert lines[0] <= most * lines[1], lines
