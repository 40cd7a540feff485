"""The bridge to pmap: copies without copies of copies, and states that move between pmap and jit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxopt_large as jl

from .catalog import like, mixed_params

P = PartitionSpec


@pytest.mark.compat
def test_replicate_and_back():
    tree = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3), "n": 3, "key": jnp.ones(4)}
    copies = jl.replicate(tree)
    assert copies["w"].shape == (8, 2, 3)
    assert [s.device for s in copies["w"].addressable_shards] == jax.local_devices()
    doubled = jax.pmap(lambda t: jax.tree.map(lambda x: x * 2, t))(copies)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), 2 * np.asarray(b)),
        jl.unreplicate(doubled),
        tree,
    )
    assert jl.replicate(tree, jax.devices()[:2])["w"].shape == (2, 2, 3)


@pytest.mark.compat
def test_what_replicate_makes_is_what_pmap_wants():
    step = jax.pmap(lambda x: x + 1.0)
    x = jl.replicate(jnp.ones((4, 3)))
    y = step(x)
    assert y.sharding.is_equivalent_to(x.sharding, x.ndim)


@pytest.mark.compat
def test_a_state_goes_from_pmap_to_jit_and_back():
    params = mixed_params()
    make = lambda: optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-2))  # noqa: E731
    mapped = jl.zero(make(), axis_name="i")
    copies = jl.replicate(params)
    state = jax.pmap(mapped.init, axis_name="i")(copies)
    step = jax.pmap(mapped.update, axis_name="i")
    for seed in range(2):
        _, state = step(jl.replicate(like(params, seed)), state, copies)
    whole = jl.to_global(state)
    plain = make()
    expected = plain.init(params)
    for seed in range(2):
        _, expected = jax.jit(plain.update)(like(params, seed), expected, params)
    assert jax.tree.structure(whole) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-7),
        whole,
        expected,
    )
    back = jl.to_per_device(whole, state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), back, state)
    assert all(
        b.sharding.is_equivalent_to(s.sharding, s.ndim)
        for b, s in zip(*map(jax.tree.leaves, (back, state)), strict=True)
    )


def test_a_large_leaf_stays_divided_on_the_way():
    rule = jl.zero(jl.adam(1e-2), axis_name="i")
    copies = jl.replicate({"w": jnp.ones((64, 512))})
    whole = jl.to_global(jax.pmap(rule.init, axis_name="i")(copies))
    assert whole[0].mu["w"].addressable_shards[0].data.shape == (8, 512)
    assert isinstance(whole[0].mu["w"].sharding, NamedSharding)


def test_errors():
    with pytest.raises(ValueError, match=r"a leaf has no device axis, got \(\)"):
        jl.unreplicate(jnp.ones(()))
    with pytest.raises(ValueError, match="is not a device axis"):
        jl.unreplicate(jnp.ones((8, 3)))


def test_values_must_fit():
    state = jl.replicate({"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"to_per_device: a value has shape .5,.; its place has .3,."):
        jl.to_per_device({"w": jnp.ones(5)}, state)
    rule = jl.zero(jl.adam(1e-2), axis_name="i")
    state = jax.pmap(rule.init, axis_name="i")(jl.replicate({"w": jnp.ones((9, 7))}))
    whole = jax.tree.map(
        lambda x: np.zeros((9, 8), x.dtype) if x.ndim else np.asarray(x), jl.to_global(state)
    )
    with pytest.raises(ValueError, match=r"a value has shape .9, 8.; its place has .9, 7."):
        jl.to_per_device(whole, state)
