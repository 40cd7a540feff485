"""Muon beside optax's: a step on one device and on 8, tracing and compiling, operations and collectives.

    python benchmarks/matrix.py          # some 10 minutes on 2 cores

Steps are timed in turns, ours and optax's in one process (A B A B), after two to warm up: medians, and the
fastest and slowest. On 8 simulated devices matrices are divided along their rows, in the layout in which a
trainer with FSDP has them. Both do 5 iterations with the same coefficients; ours in bfloat16, as it does by
default, and in float32, as optax does.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from _record import about
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl

_FILE = Path(__file__).parent / "results" / "matrix.json"
_ROUNDS = 7
_LAYER = {
    "q": (512, 512),
    "k": (512, 512),
    "v": (512, 512),
    "o": (512, 512),
    "up": (512, 2048),
    "down": (2048, 512),
}
_SIX = ((64, 64), (64, 128), (96, 64), (64, 256), (128, 128), (32, 96))


def _contenders(params):
    numbers = jax.tree.map(lambda p: optax.contrib.MuonDimensionNumbers(), params)
    return {
        "ours": jl.scale_by_muon(),
        "ours, float32": jl.scale_by_muon(ns_dtype="float32"),
        "optax": optax.contrib.scale_by_muon(weight_dimension_numbers=numbers),
    }


def _steps(devices, layers):
    """Seconds of a step of each, in turns."""
    params = {
        f"l{n}": {k: jax.random.normal(jax.random.key(n), s) for k, s in _LAYER.items()}
        for n in range(layers)
    }
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec("data")))
    runs = {}
    for name, rule in _contenders(params).items():
        state = rule.init(params)
        where = jax.tree.map(lambda x: x.sharding, params)
        step = jax.jit(lambda g, s, rule=rule: rule.update(g, s), out_shardings=(where, None))
        runs[name] = step.lower(params, state).compile(), state
    times = {name: [] for name in runs}
    for n in range(_ROUNDS + 2):
        for name, (step, state) in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, state))
            if n > 1:
                times[name].append(time.perf_counter() - start)
    found = {}
    for name, (step, _) in runs.items():
        moved = jl.plan.collectives(step)
        found[name] = {
            "seconds": [round(t, 4) for t in times[name]],
            "collectives": len(moved),
            "MB": round(moved.bytes() / 1e6, 3),
        }
    return found


def _compile():
    """Seconds to trace, to lower and to compile 288 leaves of 6 shapes, and lines of the program."""
    params = {
        f"l{i}/{j}": jax.ShapeDtypeStruct(s, jnp.float32) for i in range(48) for j, s in enumerate(_SIX)
    }
    found = {}
    for name, rule in _contenders(params).items():
        state = jax.eval_shape(rule.init, params)
        start = time.perf_counter()
        compiled = jax.jit(rule.update).lower(params, state).compile()
        seconds = time.perf_counter() - start
        found[name] = {"seconds": round(seconds, 2), "lines": len(compiled.as_text().splitlines())}
    return found


def _operations():
    """Of a step on GPT-2's 124 M parameters, beside those of 5 iterations."""
    width, layers = 768, 12
    shapes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}
    params = {
        f"l{n}": {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()} for n in range(layers)
    }
    needed = sum(row.flops for row in jl.explain(jl.scale_by_muon(), params).matrices)
    found = {}
    for name, rule in _contenders(params).items():
        compiled = jax.jit(rule.update).lower(params, jax.eval_shape(rule.init, params)).compile()
        found[name] = round(compiled.cost_analysis()["flops"] / needed, 4)
    return found


_PARTS = {
    "one device": lambda: _steps(1, 4),
    "8 devices": lambda: _steps(8, 4),
    "288 leaves": _compile,
    "operations": _operations,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(_PARTS))
    part = parser.parse_args().part
    if part is not None:
        if part == "8 devices":
            jax.config.update("jax_num_cpu_devices", 8)
        print(json.dumps(_PARTS[part]()))
        return
    found = about("jax", "optax")
    for name in _PARTS:  # each in a process of its own
        done = subprocess.run(
            [sys.executable, __file__, "--part", name], capture_output=True, text=True, check=True
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
    for name in ("one device", "8 devices"):
        medians = {k: statistics.median(x["seconds"]) for k, x in found[name].items()}
        found[name]["ratio to optax"] = {k: round(t / medians["optax"], 3) for k, t in medians.items()}
    _FILE.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
