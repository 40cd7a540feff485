"""Programs for many devices: how many collectives, how many bytes, how many operations."""

import json
import os
import subprocess
import sys

import pytest

_PROGRAM = """
import json, sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 16)
import jaxopt_large as jl
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

layers, sizes, dtype = int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
mesh = jax.make_mesh(tuple(sizes), ("x", "y")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes))
sharding = NamedSharding(mesh, P(*mesh.axis_names))
shapes = {**dict.fromkeys("qkvo", (1024, 1024)), "up": (1024, 4096), "down": (4096, 1024)}
params = {f"l{n}": {k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=sharding) for k, s in shapes.items()} for n in range(layers)}
rule = jl.scale_by_muon(ns_dtype=None if dtype == "None" else dtype)
state = jl.abstract_state(rule, params)
compiled = jax.jit(rule.update).lower(params, state, params).compile()
found = jl.plan.collectives(compiled)
squares, oblongs = 4 * 5 * 6, 2 * (8 * 4 + 2 * 14)  # directly, and by Gram matrices made twice
ideal = layers * (squares + oblongs) * 1024**3 / 16
print(json.dumps({
    "collectives": len(found),
    "in loops": len(found.inside_loops()),
    "MB": found.bytes() / 1e6,
    "flops": compiled.cost_analysis()["flops"] / ideal,
}))
"""


@pytest.mark.slow  # a process of its own, with 16 devices
@pytest.mark.parametrize(
    ("layers", "sizes", "most"),
    [
        (16, [16], {"MB": 101, "flops": 1.05}),  # stacks divide
        pytest.param(16, [4, 4], {"MB": 202, "flops": 1.05}, marks=pytest.mark.full),
        pytest.param(17, [16], {"MB": 202, "flops": 1.35}, marks=pytest.mark.full),
        pytest.param(12, [16], {"MB": 101, "flops": 1.35}, marks=pytest.mark.full),
    ],
)
def test_sixteen_devices_exchange_what_they_must(layers, sizes, most):
    command = [sys.executable, "-c", _PROGRAM, str(layers), json.dumps(sizes), "float32"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["collectives"] <= 4, found
    assert found["in loops"] == 0, found
    assert found["MB"] <= most["MB"], found
    assert found["flops"] <= most["flops"], found
