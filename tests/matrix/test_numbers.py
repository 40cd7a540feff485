"""Numbers: rules of matrices agree with their papers, whatever the matrix, and matrices do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

from ..catalog import in_turn
from . import oracles, torch_peer
from .cases import CASES, ROLES, RULES, every_rule, gradients, leaf, params

_STEPS = 50
_SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (12, 12), "row": (1, 9), "column": (9, 1)}


def _run(rule, start, grads):
    """Parameters after each step, in one compiled loop."""

    def step(carry, g):
        p, state = carry
        updates, state = rule.update(g, state, p)
        p = optax.apply_updates(p, updates)
        return (p, state), p

    return jax.jit(lambda p, g: jax.lax.scan(step, (p, rule.init(p)), g)[1])(start, grads)


@in_turn("case", CASES, "kind", list(_SHAPES))
def test_equals_the_paper_in_float64(case, kind, x64):
    r, shape = np.random.default_rng(1), _SHAPES[kind]
    start, grads = r.normal(size=shape), r.normal(size=(_STEPS, *shape))
    got = _run(case.rule(), jnp.asarray(start), jnp.asarray(grads))
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, case.oracle(grads, start), rtol=1e-9, atol=1e-9)


_ODD = {
    "rank 1": lambda r: np.outer(r.normal(size=8), r.normal(size=12)),
    "zero": lambda r: np.zeros((8, 12)),
    "1e-20": lambda r: 1e-20 * r.normal(size=(8, 12)),
    "1e15": lambda r: 1e15 * r.normal(size=(8, 12)),
}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=str(c), marks=() if c in RULES else pytest.mark.full) for c in CASES]
)
def test_what_begins_with_zeros_begins_later(case, x64):
    """A gradient of zeros, as behind a projection that is zero at first, leaves nothing behind."""
    r = np.random.default_rng(9)
    start, grads = r.normal(size=(8, 12)), r.normal(size=(12, 8, 12))
    grads[:2] = 0
    got = _run(case.rule(), jnp.asarray(start), jnp.asarray(grads))
    np.testing.assert_allclose(got, case.oracle(grads, start), rtol=1e-9, atol=1e-9)
    assert not np.array_equal(got[2], got[1])


@in_turn("case", RULES, "kind", list(_ODD))
def test_odd_gradients_equal_the_paper(case, kind, x64):
    r = np.random.default_rng(2)
    start, grads = r.normal(size=(8, 12)), np.stack([_ODD[kind](r) for _ in range(_STEPS)])
    got = _run(case.rule(), jnp.asarray(start), jnp.asarray(grads))
    # of a gradient of low rank SOAP's first bases have directions that rounding chooses; eps is too small beside
    # 1e15; of one of rank 1 it chooses a direction of Dion's first basis too
    odd = (case.name, kind) in (("soap", "1e15"), ("dion", "rank 1"))
    if (case.name, kind) == ("galore", "rank 1"):
        pytest.skip("which vectors there are beside the one is left to the singular value decomposition")
    tolerance = 1e-7 if odd else 1e-9
    np.testing.assert_allclose(got, case.oracle(grads, start), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.full)])
@in_turn("case", RULES, "kind", list(_ODD))
def test_odd_gradients_in_low_precision_stay_finite(case, kind, dtype):
    r = np.random.default_rng(3)
    rule, start = case.rule(), leaf(0, 8, 12, dtype=dtype)
    grads = jnp.asarray(np.stack([_ODD[kind](r) for _ in range(5)]), dtype)
    got = _run(rule, start, grads)
    assert got.dtype == jnp.dtype(dtype)
    assert bool(jnp.all(jnp.isfinite(got)))


_BANDS = {"keller": (0.47, 1.20), "polar_express": (0.86, 1.14), "dion": (0.47, 1.15)}


@pytest.mark.parametrize("columns", [64, 192])  # directly, and by Gram matrices
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", _BANDS)
def test_singular_values_end_in_the_published_bands(name, dtype, columns):
    """From 1e-3 of the norm on; half precision moves them by its rounding."""
    r = np.random.default_rng(4)
    low, high = _BANDS[name]
    slack = 0.0 if dtype == "float32" else 0.03
    u, _, vt = np.linalg.svd(r.normal(size=(48, columns)), full_matrices=False)
    given = np.geomspace(3e-3, 1.0, 48)
    rule = jl.orthogonalize(name, ns_dtype=dtype)
    g = jnp.asarray((u * given) @ vt, jnp.float32)
    made = np.linalg.svd(np.asarray(rule.update(g, rule.init(g))[0]), compute_uv=False)
    assert low - slack - 5e-3 <= made.min()
    assert made.max() <= high + slack + 5e-3


@pytest.mark.parametrize("way", ["spectral", "aol", "schatten"])
def test_other_preconditionings_make_matrices_orthogonal_too(way):
    """As optax's, on one matrix."""
    g = leaf(5, 12, 20)
    rule = jl.orthogonalize(preconditioning=way, ns_dtype="float32")
    got = rule.update(g, rule.init(g))[0]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        peer = optax.contrib.scale_by_muon(beta=0.0, nesterov=False, preconditioning=way)
        expected = peer.update(g, peer.init(g))[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@every_rule
def test_a_stack_is_its_layers(case):
    """Each matrix is worked on by itself: to the bit where a compiler does not order sums otherwise."""
    whole = {"stack": leaf(6, 5, 8, 12)}
    layers = {f"l{n}": x for n, x in enumerate(whole["stack"])}
    stacked, single = case.rule(roles={"stack": jl.roles.stack()}), case.rule()
    a, b = stacked.init(whole), single.init(layers)
    for grads in gradients(whole, 3):
        u, a = stacked.update(grads, a, whole)
        v, b = single.update({f"l{n}": x for n, x in enumerate(grads["stack"])}, b, layers)
        apart = np.stack([v[f"l{n}"] for n in range(5)])
        if case.name in ("muon", "scion"):
            assert np.array_equal(u["stack"], apart)
        np.testing.assert_allclose(u["stack"], apart, rtol=1e-4, atol=1e-6)


@every_rule
def test_batched_is_one_by_one(case):
    tree = {k: x for k, x in params().items() if k in ("wide", "again", "tall", "odd")}
    rule = case.rule()
    state, singles = rule.init(tree), {k: rule.init({k: x}) for k, x in tree.items()}
    for grads in gradients(tree, 3):
        updates, state = rule.update(grads, state, tree)
        for k in tree:
            alone, singles[k] = rule.update({k: grads[k]}, singles[k], {k: tree[k]})
            close = 3e-5 if case.name == "soap" else 1e-6  # bases of low rank: see above
            np.testing.assert_allclose(updates[k], alone[k], rtol=1e-4, atol=close)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_products_in_float16_mind_no_scale(scale):
    g = scale * leaf(9, 8, 12)
    made, want = (
        rule.update(g, rule.init(g))[0]
        for rule in (jl.orthogonalize(ns_dtype=d, eps=0.0) for d in ("float16", "float32"))
    )
    np.testing.assert_allclose(made, want, atol=0.02)


def test_fused_matrices_are_apart_and_kernels_are_one():
    r = np.random.default_rng(7)
    fused, kernel = r.normal(size=(6, 12)), r.normal(size=(3, 2, 4, 5))
    rule = jl.orthogonalize(
        ns_dtype="float32", roles={"qkv": jl.roles.fused(3), "conv": jl.roles.convolution()}
    )
    tree = {"qkv": jnp.asarray(fused, jnp.float32), "conv": jnp.asarray(kernel, jnp.float32)}
    made, _ = rule.update(tree, rule.init(tree))
    parts = [oracles.newton_schulz(x) for x in np.split(fused, 3, axis=1)]
    np.testing.assert_allclose(made["qkv"], np.concatenate(parts, axis=1), atol=1e-5)
    flat = oracles.newton_schulz(kernel.reshape(24, 5)).reshape(kernel.shape)
    np.testing.assert_allclose(made["conv"], flat, atol=1e-5)


@every_rule
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_gradient_touches_no_other_matrix(case, bad):
    tree = {k: x for k, x in params().items() if k in ("wide", "again", "stack")}
    roles = {"stack": "layers in out"}
    rule = case.rule(roles=roles)
    grads = gradients(tree, 1)[0]
    clean, _ = rule.update(grads, rule.init(tree), tree)
    hit = {**grads, "wide": grads["wide"].at[0, 0].set(bad), "stack": grads["stack"].at[1, 2, 3].set(bad)}
    updates, state = rule.update(hit, rule.init(tree), tree)
    assert np.array_equal(updates["again"], clean["again"])
    assert np.array_equal(updates["stack"][::2], clean["stack"][::2])
    assert not np.isfinite(updates["wide"]).all()
    kept = jax.tree_util.tree_flatten_with_path(state)[0]
    assert all(np.isfinite(x).all() for path, x in kept if "again" in str(path))


@pytest.mark.parametrize(("ours", "theirs"), [("keller", "original"), ("moonlight", "match_rms_adamw")])
def test_muon_equals_torch(ours, theirs):
    """With torch's coefficients and scales; torch works in bfloat16 with its own roundings."""
    start, grads = torch_peer.problem()
    rule = jl.muon(torch_peer.RATE, weight_decay=torch_peer.DECAY, scale=ours)
    got = _run(rule, jnp.asarray(start, jnp.float32), jnp.asarray(grads, jnp.float32))[-1]
    np.testing.assert_allclose(got, torch_peer.recorded()[theirs], atol=len(grads) * torch_peer.RATE * 0.02)


def test_what_is_recorded_of_torch_is_what_it_does():
    pytest.importorskip("torch")
    for theirs, weights in torch_peer.recorded().items():
        np.testing.assert_allclose(torch_peer.trained(theirs), weights, atol=1e-3)


def test_other_leaves_go_to_adamw_at_their_ratio():
    tree = params()
    rule, alone = jl.muon(0.1, other_ratio=0.5, roles=ROLES), jl.adamw(0.05, weight_decay=0.0)
    grads = gradients(tree, 1)[0]
    others = {k: tree[k] for k in ("bias", "embed")}
    updates, _ = rule.update(grads, rule.init(tree), tree)
    expected, _ = alone.update({k: grads[k] for k in others}, alone.init(others), others)
    for k in others:
        np.testing.assert_allclose(updates[k], expected[k], rtol=1e-6)
