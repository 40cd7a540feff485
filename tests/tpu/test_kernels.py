"""Kernels compiled by Mosaic, for chips that are not there: no copies, and bytes near the floor."""

import os

import pytest

pytest.importorskip("libtpu", reason="`make tpu` installs the TPU compiler")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxopt_large as jl
from jaxopt_large._encoded import is_encoded
from jaxopt_large.fused._step import Step, step_of
from jaxopt_large.fused.targets import TARGETS

from ..fused import cases

pytestmark = pytest.mark.tpu_compile
_CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
_SHAPES = [(512, 4096), (1000, 640), (4, 256, 1024), (12, 768, 768), (2, 3, 256, 512)]


def _int8(**options):
    return jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8(), **options)


def _compiled(rule, shape, dtype, gradient, chip):
    device = topologies.get_topology_desc(_CHIPS[chip], platform="tpu").devices[0]
    params, grads = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, gradient)
    args = (params, jax.eval_shape(rule.init, params), grads)
    where = SingleDeviceSharding(device)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), args)

    def step(params, state, grads):
        return jl.apply(rule, grads, state, params, kernels="tpu")

    return jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile(), args


def _check(compiled, args):
    memory = compiled.memory_analysis()
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(args[1]))
    bits = lambda x: 4 if "int4" in str(x.dtype) else 8 * x.dtype.itemsize  # noqa: E731
    held = sum(math.prod(x.shape) * bits(x) // 8 for x in jax.tree.leaves(args[:2]) if x.ndim)
    assert compiled.as_text().count("tpu_custom_call") == 1
    stored = sum(is_encoded(x) for x in jax.tree.leaves(args[1], is_leaf=is_encoded))
    # the kernel's scalars, and what moves them and each field's scales
    assert memory.temp_size_in_bytes < max(0.01 * state, 2**17 * max(stored, 1))
    assert memory.alias_size_in_bytes >= held


_CASES = cases.pairs(cases.RULES, ("int8", "int4", "float8"), cases.PARAMS, _SHAPES, list(_CHIPS))


@pytest.mark.parametrize(("name", "formats", "kind", "shape", "chip"), _CASES)
def test_every_kernel_compiles(name, formats, kind, shape, chip):
    dtype, gradient, kept = cases.PARAMS[kind]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        compiled, args = _compiled(cases.rule_of(name, formats, kept), shape, dtype, gradient, chip)
    if shape == (1000, 640):  # XLA chooses another layout for arrays that fill no tile
        assert compiled.as_text().count("tpu_custom_call") == 1
    else:
        _check(compiled, args)


@pytest.mark.parametrize("chip", _CHIPS)
@pytest.mark.parametrize("kept", [None, jl.rounded, jl.split])
def test_int8_adamw_moves_the_bytes_of_its_floor(chip, kept):
    rule, shape = _int8(params=kept and kept()), (4096, 4096)
    dtype = jnp.bfloat16 if kept else jnp.float32
    compiled, args = _compiled(rule, shape, dtype, jnp.bfloat16, chip)
    _check(compiled, args)
    params, state, grads = args
    (pass_,) = Step.taken(step_of(rule, {}), (grads, state, params)).split.passes
    floor = sum(
        math.prod(x.shape) * x.dtype.itemsize * n
        for x, n in ((grads, 1), (params, 2), *((x, 2) for x in jax.tree.leaves(state) if x.ndim))
    )
    assert sum(TARGETS["tpu"].moved(pass_)) <= 1.15 * floor


def test_on_a_mesh_of_eight_chips():
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu").devices
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    rule = jl.zero(_int8(), mesh, "data")
    where = NamedSharding(mesh, PartitionSpec())
    params = {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.float32, sharding=where)}
    state = jl.abstract_state(rule, params)
    step = jax.jit(functools.partial(jl.apply, rule), donate_argnums=(1, 2))
    compiled = step.lower(params, state, params).compile()
    assert compiled.as_text().count("tpu_custom_call") >= 1
    kinds = {c.kind for c in jl.plan.collectives(compiled)}
    assert "all-gather" in kinds
