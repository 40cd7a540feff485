"""Kernels compiled for GPUs that are not there: no copies, and every value in a register."""

import importlib.util
import math

import pytest

if not any(map(importlib.util.find_spec, ("jax_cuda12_plugin", "jax_cuda13_plugin"))):
    pytest.skip("`make gpu` installs the GPU compiler", allow_module_level=True)

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxopt_large as jl
from jaxopt_large.fused.targets import _triton

from ..fused import cases

pytestmark = pytest.mark.gpu_compile
_CHIPS = {  # -> compute capability, multiprocessors, shared memory of each, of it for one block
    "NVIDIA A100-SXM4-80GB": ((8, 0), 108, 167936, 166912),
    "NVIDIA L4": ((8, 9), 58, 102400, 101376),
    "NVIDIA H100 80GB HBM3": ((9, 0), 132, 233472, 232448),
    "NVIDIA B200": ((10, 0), 148, 233472, 232448),
}
_H100 = "NVIDIA H100 80GB HBM3"
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: {2} shared_memory_per_block_optin: {3} core_count: {1}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 41943040 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  cuda_compute_capability {{ major: {0[0]} minor: {0[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{4}"
"""
# not in registers means in memory: a kernel whose time is that of its bytes would take several times as long
_NO_SPILLS = {"xla_gpu_fail_ptx_compilation_on_register_spilling": True}


def _compiled(rule, shape, dtype, gradient, chip=_H100):
    target = _TARGET.format(*_CHIPS[chip], chip)
    topology = topologies.get_topology_desc("", platform="cuda", target_config=target, topology="1x1x1")
    where = SingleDeviceSharding(topology.devices[0])
    params, grads = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, gradient)
    args = (params, jax.eval_shape(rule.init, params), grads)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), args)

    def step(params, state, grads):
        return jl.apply(rule, grads, state, params, kernels="gpu")

    with cases.as_if_on_a_gpu():
        lowered = jax.jit(step, donate_argnums=(0, 1)).trace(*args).lower()
    return lowered.compile(compiler_options=_NO_SPILLS), args


def _check(compiled, args):
    memory = compiled.memory_analysis()
    held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(args[:2]) if x.ndim)
    assert compiled.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') == 1
    assert memory.temp_size_in_bytes < 2**12  # the kernel's scalars
    assert memory.alias_size_in_bytes >= held


_SHAPES = [(512, 4096), (1000, 640), (129, 300), (3, 65, 257), (2, 3, 256, 512), (2048, 100), (1, 65536)]
_CASES = [
    (name, formats, list(cases.PARAMS)[n % 4], _SHAPES[n % 7])
    for n, (name, formats) in enumerate(cases.pairs(cases.RULES, ("int8", "float8")))
]


@pytest.mark.parametrize(("name", "formats", "kind", "shape"), _CASES)
def test_every_kernel_compiles(name, formats, kind, shape):
    dtype, gradient, kept = cases.PARAMS[kind]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _check(*_compiled(cases.rule_of(name, formats, kept), shape, dtype, gradient))


@pytest.mark.parametrize("chip", _CHIPS)
@pytest.mark.parametrize("formats", ["int8", "float8"])
def test_on_every_chip(monkeypatch, chip, formats):
    major, minor = _CHIPS[chip][0]
    monkeypatch.setattr(_triton, "_capability", lambda: major + minor / 10)
    rule = cases.rule_of("jl.adamw", formats, jl.split)
    with jax.numpy_dtype_promotion("standard"):
        compiled, args = _compiled(rule, (512, 1000), jnp.bfloat16, jnp.bfloat16, chip)
    if (chip, formats) == ("NVIDIA A100-SXM4-80GB", "float8"):  # of whose conversion the compiler dies
        assert "triton" not in compiled.as_text()
    else:
        _check(compiled, args)
