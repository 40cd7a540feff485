"""Gradients of any size that the dtype has, and jumps between sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large.matrix.norms import frobenius

from ..catalog import in_turn
from .cases import RULES, leaf

_WAYS = ("frobenius", "spectral", "aol", "schatten")


@pytest.mark.parametrize("way", _WAYS)
def test_zeros_stay_zeros(way):
    x = jnp.stack([jnp.zeros((4, 6)), leaf(0, 4, 6), leaf(0, 4, 6).at[1].set(0.0)])
    for eps in (0.0, 1e-8):
        rule = jl.orthogonalize(preconditioning=way, eps=eps, ns_dtype="float32", roles={"*": "n in out"})
        made, _ = rule.update({"w": x}, rule.init({"w": x}))
        assert np.isfinite(made["w"]).all()
        assert not np.any(made["w"][0])
        assert not np.any(made["w"][2, 1])


@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("scale", [1e-33, 1e-30, 1e-20, 1e20, 1e30, 1e38])
def test_directions_mind_no_scale(way, scale):
    x = leaf(1, 4, 6)
    x = x / jnp.max(jnp.abs(x))
    rule = jl.orthogonalize(preconditioning=way, eps=0.0, ns_dtype="float32")
    want, made = (rule.update(g, rule.init(x))[0] for g in (x, scale * x))
    np.testing.assert_allclose(made, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", _WAYS)
def test_eps_is_beside_the_norm_whatever_the_way(way):
    """A gradient far below eps stays small."""
    x = 1e-20 * leaf(1, 4, 6)
    rule = jl.orthogonalize(preconditioning=way, eps=1e-8, ns_dtype="float32")
    assert float(jnp.linalg.norm(rule.update(x, rule.init(x))[0])) < 1e-6


@pytest.mark.parametrize("scale", [0.0, 1e-41, 1e-34, 1.0, 1e19, 1e37])
def test_norms_of_any_scale(scale):
    x = np.asarray(leaf(2, 3, 4, 6)) / 10
    got = frobenius(jnp.asarray(scale * x, jnp.float32))[:, 0, 0]
    want = scale * np.linalg.norm(x, axis=(1, 2)) if scale > 1e-38 else 0.0
    np.testing.assert_allclose(got, want, rtol=1e-5)


_JUMPS = {
    "up": [1.0, 1.0, 1.0, 1e9, 1.0, 1.0],
    "far up": [1.0, 1.0, 1e19, 1.0, 1.0, 1.0],
    "tiny at first": [1e-10, 1.0, 1.0, 1.0, 1.0, 1.0],
    "down": [1.0, 1.0, 1e-12, 1e-12, 1e-12, 1e-12],
}


@in_turn("case", RULES, "jump", list(_JUMPS))
def test_jumps_are_survived(case, jump):
    """Whatever the updates are while they last, state and updates stay finite."""
    rule, tree = case.rule(), {"w": leaf(3, 8, 12)}
    scales = jnp.asarray(_JUMPS[jump], jnp.float32)
    grads = scales[:, None, None] * leaf(4, len(scales), 8, 12)

    def step(state, g):
        updates, state = rule.update({"w": g}, state, tree)
        return state, updates["w"]

    state, updates = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(rule.init(tree), grads)
    assert np.isfinite(updates).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert all(np.any(u) for u in updates)


# Kron's factors are fitted at a rate, from the size of the first gradient
@in_turn("case", [c for c in RULES if c.name != "kron"], "scale", [1e-12, 1e12])
def test_updates_mind_no_scale_in_float32(case, scale):
    """As the papers' do, whose eps are relative or 0."""
    settings = (
        {"eps": 0.0}
        if case.name in ("muon", "normuon", "scion", "dion", "soap", "shampoo", "apollo", "galore")
        else {}
    )
    grads, tree, seen = leaf(5, 4, 8, 12), {"w": leaf(3, 8, 12)}, []
    for by in (1.0, scale):
        rule = case.precise(**settings)
        state = rule.init(tree)
        for g in grads:
            updates, state = rule.update({"w": by * g}, state, tree)
        seen.append(updates["w"])
    np.testing.assert_allclose(seen[1], seen[0], rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("case", RULES, ids=str)
def test_a_long_silence_is_survived(case):
    """Momentum that has faded under the range leaves nothing behind that does not move again."""
    rule, tree = case.rule(), {"w": leaf(3, 4, 6)}
    scales = jnp.where((jnp.arange(3010) < 3) | (jnp.arange(3010) >= 3005), 1.0, 0.0)

    def step(state, scale):
        updates, state = rule.update({"w": scale * leaf(4, 4, 6)}, state, tree)
        return state, jnp.max(jnp.abs(updates["w"]))

    state, sizes = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(rule.init(tree), scales)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert float(sizes[-1]) > 0


@pytest.mark.parametrize("shape", [(128, 256), (256, 128), (64, 512)])
def test_first_steps_of_soap_are_as_long_as_adams(shape):
    """A first gradient says nothing of half of the directions, where rounding must not be made a step."""
    rule, tree = jl.scale_by_soap(), {"w": leaf(6, *shape)}
    state = rule.init(tree)
    for g in leaf(7, 3, *shape):
        updates, state = rule.update({"w": g}, state, tree)
        assert float(jnp.sqrt(jnp.mean(jnp.square(updates["w"])))) < 1.1
