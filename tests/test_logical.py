"""What is written to disk does not depend on what held it: jit, shard_map, pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.checkpoint._logical import unpadded, unpadded_like

from .catalog import like

P = PartitionSpec
_SHAPES = {"even": (16, 24), "middle": (3, 64, 512), "odd": (9, 7), "flat": (31, 37, 41), "scale": ()}


def _params():
    return {
        name: jnp.asarray(np.random.default_rng(0).normal(size=s), jnp.float32) for name, s in _SHAPES.items()
    }


def _in_shard_map(mesh, rule):
    """A state after one step, its specs, and the step."""
    specs = jl.mapped_state_specs(rule, _params(), {"data": mesh.size})
    init = jax.jit(jax.shard_map(rule.init, mesh=mesh, in_specs=P(), out_specs=specs))
    step = jax.jit(jax.shard_map(rule.update, mesh=mesh, in_specs=(P(), specs, P()), out_specs=(P(), specs)))
    return init(_params()), step


def test_states_of_shard_map_are_written_and_read_back(tmp_path, mesh8):
    rule, params = jl.zero(jl.adam(1e-2), axis_name="data"), _params()
    state, step = _in_shard_map(mesh8, rule)
    _, state = jax.block_until_ready(step(like(params, 1), state, params))
    jl.save(tmp_path / "state", state)
    plain = jl.adam(1e-2)
    _, want = jax.jit(plain.update)(like(params, 1), plain.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), unpadded(state), want)
    back = jl.restore(tmp_path / "state", state)
    assert jax.tree.map(jnp.shape, back) == jax.tree.map(jnp.shape, state)
    straight, _ = jax.block_until_ready(step(like(params, 2), state, params))
    resumed, _ = jax.block_until_ready(step(like(params, 2), back, params))
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    mesh = make_mesh((3,), ("data",), devices=jax.devices()[:3])  # and under jit, on three
    under_jit = jl.zero(jl.adam(1e-2), mesh, "data")
    moved = jl.restore(tmp_path / "state", under_jit.init(jax.device_put(params, NamedSharding(mesh, P()))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), unpadded(moved), want)


def test_explicit_axes(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    params = jax.device_put(_params(), NamedSharding(mesh, P()))
    rule = jl.zero(jl.adam(1e-2), mesh, "data", min_bytes=0)
    _, state = jax.jit(rule.update)(like(params, 1), rule.init(params), params)
    jl.save(tmp_path / "state", state)
    back = jl.restore(tmp_path / "state", rule.init(params))
    jax.tree.map(np.testing.assert_array_equal, back, state)
    plain = jl.adam(1e-2)
    _, want = jax.jit(plain.update)(like(_params(), 1), plain.init(_params()), _params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), unpadded(state), want)


def test_states_of_pmap_are_refused_before_they_are_scrambled(tmp_path):
    rule = jl.zero(jl.adam(1e-2), axis_name="i")
    for name in ("middle", "odd", "scale"):
        state = jax.pmap(rule.init, axis_name="i")(jl.replicate({name: _params()[name]}))
        with pytest.raises(
            ValueError, match=r"save: a leaf of the state has the device axis of pmap.*to_global"
        ):
            jl.save(tmp_path / "state", state)
    assert not (tmp_path / "state").exists()


def test_without_padding_a_leaf_is_divided_over_another_dimension_where_one_divides(mesh8):
    params = jax.device_put(
        {"w": jnp.ones((1009, 32)), "v": jnp.ones((31, 37, 41))}, NamedSharding(mesh8, P())
    )
    state = jl.zero(jl.adam(1e-2), mesh8, "data", layers=None).init(params)
    kept = {k: x.addressable_shards[0].data.shape for k, x in unpadded(state)[0].mu.items()}
    assert kept == {"w": (1009, 4), "v": (31, 37, 41)}


def test_shapes_without_shardings_are_refused_where_a_place_is_needed(mesh8):
    rule, params = jl.zero(jl.adam(1e-2), mesh8, "data", min_bytes=0), {"odd": jnp.ones((9, 7))}
    with pytest.raises(ValueError, match=r"restore: a leaf of shape .64,. has no sharding.*abstract_state"):
        unpadded_like(jax.eval_shape(rule.init, params))
    unpadded_like(jl.abstract_state(rule, params))
