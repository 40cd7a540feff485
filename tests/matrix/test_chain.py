"""Chains of links, norms that stay, and heads that are scaled down."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl

from .cases import ROLES, gradients, leaf, params

_MATRICES = {"w": (16, 24), "v": (24, 16)}


def _tree():
    return {name: leaf(n, *shape) for n, (name, shape) in enumerate(_MATRICES.items())}


@pytest.mark.full
def test_links_do_what_they_do_one_after_another():
    links = lambda: (jl.scale_by_soap(), jl.orthogonalize(ns_dtype="float32"), jl.normalize_outputs())  # noqa: E731
    chained, apart = jl.matrix_chain(*links()), optax.chain(*links())
    tree = _tree()
    a, b = chained.init(tree), apart.init(tree)
    for g in gradients(tree, 3):
        u, a = chained.update(g, a, tree)
        v, b = apart.update(g, b, tree)
        for k in tree:
            np.testing.assert_allclose(u[k], v[k], rtol=1e-3, atol=1e-4)


def test_what_a_link_multiplies_by_is_seen_by_the_next():
    links = jl.scale_by_dion(rank=1.0), jl.orthogonalize("polar_express", ns_dtype="float32")
    tree, grads = {"w": leaf(0, 4, 64), "v": leaf(1, 64, 4)}, {"w": leaf(2, 4, 64), "v": leaf(3, 64, 4)}
    chained, apart = jl.matrix_chain(*links), optax.chain(*links)
    got, _ = chained.update(grads, chained.init(tree), tree)
    want, _ = apart.update(grads, apart.init(tree), tree)
    for k in tree:
        np.testing.assert_allclose(got[k], want[k], rtol=1e-4, atol=1e-5)


def test_nothing_travels_between_links():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tree = jax.device_put(_tree(), NamedSharding(mesh, PartitionSpec("data")))

    def collectives(rule):
        compiled = jax.jit(rule.update).lower(tree, rule.init(tree), tree).compile()
        return len(jl.plan.collectives(compiled))

    one, two = jl.orthogonalize(), jl.orthogonalize("polar_express")
    assert collectives(jl.matrix_chain(one, two)) == collectives(one)
    assert collectives(optax.chain(one, two)) == 2 * collectives(one)


def test_with_a_learning_rate_a_chain_is_a_full_rule():
    rule = jl.matrix_chain(
        jl.scale_by_muon(roles=ROLES), learning_rate=0.1, weight_decay=0.1, other=jl.sgd(1.0)
    )
    want = jl.muon(0.1, scale="spectral", roles=ROLES, weight_decay=0.1, other=jl.sgd(1.0))
    tree, grads = params(), gradients(params(), 1)[0]
    updates, _ = rule.update(grads, rule.init(tree), tree)
    expected, _ = want.update(grads, want.init(tree), tree)
    assert np.array_equal(updates["bias"], expected["bias"])
    scale = (24 / 16) ** 0.5
    ours, theirs = (x["wide"] + 0.1 * 0.1 * tree["wide"] for x in (updates, expected))
    np.testing.assert_allclose(scale * ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("links", "error", "wrong"),
    [
        ((), ValueError, "none of 0 links works on matrices"),
        ((jl.scale_by_adam(),), ValueError, "none of 1 links works on matrices"),
        ((optax.adam(0.1),), TypeError, "link 0 is none of the library's directions"),
        (
            (jl.orthogonalize(), jl.orthogonalize(roles={"*": "out in"})),
            ValueError,
            "links read leaves otherwise",
        ),
        (
            (jl.orthogonalize(), jl.add_decayed_weights(0.1, mask="w"), jl.orthogonalize()),
            ValueError,
            "a link with a mask",
        ),
    ],
    ids=["none", "adam", "optax", "roles", "mask"],
)
def test_chains_that_are_refused(links, error, wrong):
    with pytest.raises(error, match=f"matrix_chain: .*{wrong}"):
        jl.matrix_chain(*links)


@pytest.mark.parametrize("inner", [pytest.param("muon", marks=pytest.mark.full), "adamw"])
def test_hyperball_keeps_the_norm_of_each_matrix(inner):
    make = {"muon": lambda: jl.muon(0.1, roles=ROLES), "adamw": lambda: jl.adamw(0.1)}[inner]
    rule, tree = jl.hyperball(make(), roles=ROLES), params()
    state, now = rule.init(tree), tree
    for g in gradients(tree, 3):
        updates, state = jax.jit(rule.update)(g, state, now)
        now = optax.apply_updates(now, updates)
    for name, shape in (("wide", (1, 16, 24)), ("stack", (3, 16, 24)), ("qkv", None)):
        before, after = (
            x[name].reshape(shape) if shape else np.stack(np.split(x[name], 3, axis=1)) for x in (tree, now)
        )
        norms = [np.sqrt((np.asarray(x) ** 2).sum((1, 2))) for x in (before, after)]
        np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)
        assert np.abs(np.asarray(after) - np.asarray(before)).max() > 1e-3
    plain = make()
    expected, _ = plain.update(gradients(tree, 1)[0], plain.init(tree), tree)
    first, _ = rule.update(gradients(tree, 1)[0], rule.init(tree), tree)
    np.testing.assert_allclose(first["bias"], expected["bias"], rtol=1e-6)
    with pytest.raises(TypeError, match="hyperball: rule is not a rule"):
        jl.hyperball(3)


def test_hyperball_of_two_dtypes():
    tree = {"a": leaf(0, 4, 6, dtype=jnp.bfloat16), "b": leaf(1, 4, 6)}
    rule = jl.hyperball(jl.sgd(0.1))
    updates, _ = rule.update(tree, rule.init(tree), tree)
    assert {k: u.dtype for k, u in updates.items()} == {"a": jnp.bfloat16, "b": jnp.float32}


def test_qk_clip_scales_heads_whose_logits_are_too_large():
    tree = {"q": jnp.ones((2, 4, 6)), "qkv": jnp.ones((4, 18)), "out": jnp.ones((4, 4))}
    rule = optax.chain(
        jl.sgd(0.5), jl.qk_clip({"q": "layers in (3 out)", "qkv": "in (3 3 out)"}, threshold=10.0)
    )
    grads, state = jax.tree.map(jnp.ones_like, tree), rule.init(tree)
    logits = jnp.array([40.0, 10.0, 1.0])
    both = {"q": jnp.stack([logits, jnp.ones(3)]), "qkv": logits}
    updates, _ = jax.jit(lambda g, s, p, m: rule.update(g, s, p, max_logits=m))(grads, state, tree, both)
    moved = optax.apply_updates(tree, updates)
    heads = np.asarray(moved["q"]).reshape(2, 4, 3, 2)
    np.testing.assert_allclose(heads[0, 0, :, 0], [0.25, 0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(heads[1], 0.5, rtol=1e-6)
    fused = np.asarray(moved["qkv"]).reshape(4, 3, 3, 2)
    np.testing.assert_allclose(fused[0, :, 0, 0], [0.25, 0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(fused[:, :, 1:], 0.5, rtol=1e-6)
    np.testing.assert_allclose(moved["out"], 0.5)


def test_what_qk_clip_refuses():
    tree = {"q": jnp.ones((4, 6))}
    with pytest.raises(
        ValueError, match=r"qk_clip: role 'in .5 out.' takes a dimension of 6 apart into 5 at q"
    ):
        jl.qk_clip({"q": "in (5 out)"}).init(tree)
    with pytest.raises(ValueError, match="qk_clip: heads name 'k', which gets no leaf"):
        jl.qk_clip({"k": "in (3 out)"}).init(tree)
    rule = jl.qk_clip({"q": "in (3 out)"})
    with pytest.raises(TypeError, match="qk_clip: max_logits are needed, got None"):
        rule.update(tree, rule.init(tree), tree)
    with pytest.raises(
        ValueError, match=r"qk_clip: max_logits have shape \(2,\) at q; role .* counts \(3,\)"
    ):
        rule.update(tree, rule.init(tree), tree, max_logits=jnp.ones(2))
    with pytest.raises(ValueError, match=r"qk_clip: max_logits have no 'q' at q; .*'other'"):
        rule.update(tree, rule.init(tree), tree, max_logits={"other": jnp.ones(3)})
    stacked, two = {"q": jnp.ones((4, 1, 2))}, jl.qk_clip({"q": "layers in (2 out)"})
    with pytest.raises(ValueError, match=r"max_logits have shape \(2,\) at q; role .* counts \(4, 2\)"):
        two.update(stacked, two.init(stacked), stacked, max_logits=jnp.ones(2))


def test_a_failed_root_is_survived_and_counted():
    """A factor that is no mean of squares any more keeps the root that it had."""
    rule, tree = jl.shampoo(0.1, refresh=1), {"w": leaf(0, 8, 12), "v": leaf(1, 8, 12)}
    grads, state = gradients(tree, 2), rule.init(tree)
    _, state = rule.update(grads[0], state, tree)
    own = state.inner_states["matrices"].inner_state[0]
    broken = own.left["w"] - 10 * jnp.eye(8)[None]  # eigenvalues below zero
    hit = own._replace(left={**own.left, "w": broken})
    inner = optax.MaskedState((hit, *state.inner_states["matrices"].inner_state[1:]))
    state = state._replace(inner_states={**state.inner_states, "matrices": inner})
    updates, state = rule.update(grads[1], state, tree)
    kept = state.inner_states["matrices"].inner_state[0]
    assert np.array_equal(kept.left_root["w"], own.left_root["w"])
    assert kept.failures["w"].tolist() == [[1.0, 0.0]]
    assert kept.failures["v"].tolist() == [[0.0, 0.0]]
    assert all(np.isfinite(u).all() for u in updates.values())


@pytest.mark.parametrize("ridge", [1e-12, 1e-8])
def test_a_ridge_under_the_rounding_still_has_roots(ridge):
    rule, tree = jl.scale_by_shampoo(ridge=ridge, refresh=1), {"w": leaf(0, 8, 12)}
    state, g = rule.init(tree), {"w": jnp.outer(leaf(1, 8), leaf(2, 12))}  # of rank 1
    for _ in range(3):
        updates, state = rule.update(g, state, tree)
    assert state.failures["w"].tolist() == [[0.0, 0.0]]
    assert np.isfinite(updates["w"]).all()


def test_the_second_moment_of_soap_moves_in_every_step():
    rule, tree = jl.scale_by_soap(refresh=5), {"w": leaf(0, 8, 12)}
    state = rule.init(tree)
    for g in gradients(tree, 8):
        before = state.nu["w"]
        _, state = rule.update(g, state, tree)
        assert not np.array_equal(state.nu["w"], before)


@pytest.mark.parametrize("name", ["soap", "shampoo", "kron"])
def test_factors_take_what_explain_says(name):
    """By blocks: to the byte, and each device its share."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    tree = jax.device_put({"w": leaf(0, 128, 256)}, NamedSharding(mesh, PartitionSpec()))
    rule = jl.zero(getattr(jl, name)(0.1, block=64), mesh, "data", min_bytes=0)
    state, found = rule.init(tree), jl.explain(rule, tree)
    assert found.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    held = sum(
        s.data.nbytes for x in jax.tree.leaves(state) for s in x.addressable_shards if s.device.id == 0
    )
    assert held == sum(row.device_bytes for row in found.rows)
    factors = 8 * (64 * 64 + 64 * 64) * 4
    rows = [row.bytes for row in found.rows if row.field in ("left", "right")]
    assert sum(rows) == factors


@pytest.mark.parametrize(("name", "field"), [("shampoo", "left_root"), ("soap", "left_basis")])
def test_staggered_blocks_are_refreshed_in_turn(name, field):
    """Of one matrix, of a stack and of several leaves, one after the other, on any devices."""
    tree = {"a": leaf(0, 16, 16), "stack": leaf(1, 3, 8, 8), "w": leaf(2, 8, 8)}
    rule = getattr(jl, f"scale_by_{name}")(
        block=8, refresh=4, staggered=True, roles={"stack": "layers in out"}
    )

    def blocks(state):
        return np.concatenate([np.asarray(x).reshape(-1, 8, 8) for x in getattr(state, field).values()])

    def refreshed(tree):
        state, changed = rule.init(tree), []
        update = jax.jit(rule.update)
        for g in gradients(tree, 9):
            before = blocks(state)
            _, state = update(g, state, tree)
            changed.append(
                [
                    n
                    for n, (x, y) in enumerate(zip(before, blocks(state), strict=True))
                    if not np.array_equal(x, y)
                ]
            )
        return changed

    changed = refreshed(tree)
    assert changed[0] == list(range(8))
    assert changed[4:8] == [[3, 6], [2, 5], [1, 4], [0, 7]]  # a block of the first leaf, and another matrix
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    places = {"a": PartitionSpec("data"), "stack": PartitionSpec(None, "data"), "w": PartitionSpec()}
    assert refreshed(jax.device_put(tree, {k: NamedSharding(mesh, s) for k, s in places.items()})) == changed


def test_configurations_name_roles_and_the_rule_of_other_leaves():
    pytest.importorskip("pydantic")
    groups = (
        "{'*': {rule: muon, learning_rate: 0.02, roles: {'layers/attn/qkv': 'layers in (3 out)', 'layers/*': "
        "'layers in out'}, other: {rule: adamw, learning_rate: 0.006, b2: 0.98}}}"
    )
    config = jl.load("configs/stdlib_gpt.yaml", [f"optimizer.groups={groups}", "placement.zero=null"])
    shape = jax.ShapeDtypeStruct
    tree = {
        "embed": shape((256, 96), jnp.float32),
        "layers": {"attn": {"qkv": shape((4, 96, 288), jnp.float32)}, "up": shape((4, 96, 384), jnp.float32)},
    }
    rows = jl.explain(jl.build(config), tree).matrices
    assert {row.path: row.matrices for row in rows} == {
        "layers/attn/qkv": "12 x [96, 96]",
        "layers/up": "4 x [96, 384]",
    }
