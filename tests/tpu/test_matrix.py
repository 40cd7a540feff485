"""Muon's collectives and operations, read by the real TPU compiler: 64 chips that are not there."""

import os

import pytest

pytest.importorskip("libtpu", reason="`make tpu` installs the TPU compiler")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxopt_large as jl

pytestmark = pytest.mark.tpu_compile


@pytest.mark.parametrize("sizes", [(64,), (8, 8)])
def test_each_matrix_travels_once_there_and_once_back(sizes):
    devices = topologies.get_topology_desc("v5p:4x4x4", platform="tpu").devices
    names = ("x", "y")[: len(sizes)]
    mesh = Mesh(np.array(devices).reshape(sizes), names, axis_types=(AxisType.Auto,) * len(sizes))
    sharding = NamedSharding(mesh, PartitionSpec(*names))
    shapes = {**dict.fromkeys("qkvo", (1024, 1024)), "up": (1024, 4096), "down": (4096, 1024)}
    params = {
        f"l{n}": {k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for k, s in shapes.items()}
        for n in range(16)
    }
    rule = jl.scale_by_muon()
    state = jl.abstract_state(rule, params)
    compiled = jax.jit(rule.update).lower(params, state, params).compile()
    found = jl.plan.collectives(compiled)
    assert len(found) <= 12, found
    assert len(found.inside_loops()) == 0, found
    share = sum(x.size for x in jax.tree.leaves(params)) * 4 / 64
    # two trips; there are 32 of the larger matrices for 64 chips, so that half of what they take is padding
    assert found.bytes() <= 2 * share * 1.35, found


@pytest.mark.parametrize("name", ["soap", "dion", "kron"])
def test_bases_are_made_where_the_matrices_are(name):
    """Cholesky QR, reflections where it does not hold, and triangular inverses: no device asks another."""
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
    mesh = Mesh(np.array(devices).reshape(8), ("x",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = {f"l{n}": jax.ShapeDtypeStruct((128, 256), jnp.float32, sharding=sharding) for n in range(8)}
    rule = getattr(jl, f"scale_by_{name}")()
    state = jl.abstract_state(rule, params)
    found = jl.plan.collectives(jax.jit(rule.update).lower(params, state, params).compile())
    assert found
    assert len(found.inside_loops()) == 0, found
    assert {row.kind for row in found} <= {"all-to-all", "all-gather"}, (
        found
    )  # what is small is whole everywhere
