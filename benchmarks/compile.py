"""How long steps take to trace and compile: int8 state beside float32, on GPT-2's leaves.

    python benchmarks/compile.py           # for this machine's CPU
    python benchmarks/compile.py --tpu     # for a TPU that is not there; needs libtpu

123 leaves in 12 layers, none of them stacked: the embeddings, and per layer four matrices, four biases and
two norms. AdamW by `jl.apply`, in caches that are empty, in turn (A B A B ...). Seconds are medians: of the
clock's time, and of this process's on all cores, which others on the machine change less; beside them what
the compiler had to make: CPU's makes equal fusions once each. Saved as results/compile-PLATFORM.json.
"""

import argparse
import importlib.util
import itertools
import json
import os
import statistics
import time
from pathlib import Path

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from _programs import applied, kernels_in, updated
from _record import about

import jaxopt_large as jl

_ROUNDS = 3  # after one that is not counted
_CHIP = "v5e:2x2"
_STAGES = ("trace", "lower", "compile")


def _gpt2(layers: int = 12, width: int = 768) -> dict:
    """Shapes of the leaves."""
    layer = {
        "norm_1": (width,),
        "qkv": (width, 3 * width),
        "qkv_bias": (3 * width,),
        "proj": (width, width),
        "proj_bias": (width,),
        "norm_2": (width,),
        "up": (width, 4 * width),
        "up_bias": (4 * width,),
        "down": (4 * width, width),
        "down_bias": (width,),
    }
    ends = {"wte": (50257, width), "wpe": (1024, width), "norm": (width,)}
    return ends | {f"layer_{n:02}": layer for n in range(layers)}


def _steps() -> dict:
    rule = jl.adamw(1e-3)
    stored = jl.stored(rule, mu=jl.int8(), nu=jl.int8())
    return {
        "float32, apply": (rule, applied(rule)),
        "int8, apply": (stored, applied(stored)),
        "float32, update": (rule, updated(rule)),
        "int8, update": (stored, updated(stored)),
        "optax, update": (optax.adamw(1e-3), updated(optax.adamw(1e-3))),
    }


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()  # of all threads


def _measured(rule, step, sharding) -> tuple[list[tuple[float, float]], dict[str, int]]:
    """Seconds of each stage, by the clock and of this process, and what the compiler had to make."""
    shapes = _gpt2()
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731
    params = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)
    args = params, jax.eval_shape(rule.init, params), params
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
    jax.clear_caches()  # as in a new process
    laps = [_clocks()]
    traced = jax.jit(lambda *a: step(*a), donate_argnums=(0, 1)).trace(*args)
    laps.append(_clocks())
    lowered = traced.lower()
    laps.append(_clocks())
    compiled = lowered.compile()
    laps.append(_clocks())
    text = compiled.as_text()
    made = {"fusions": text.count(" fusion("), "loops": text.count(" while("), "kernels": kernels_in(text)}
    return [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in itertools.pairwise(laps)], made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tpu", action="store_true", help="compile for a TPU, by libtpu")
    platform = "tpu" if parser.parse_args().tpu else "cpu"
    sharding = None
    if platform == "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise SystemExit("libtpu is not installed: `make tpu` makes an environment that has it")
        from jax.experimental import topologies

        device = topologies.get_topology_desc(_CHIP, platform="tpu").devices[0]
        sharding = jax.sharding.SingleDeviceSharding(device)
    jax.config.update("jax_enable_compilation_cache", False)
    steps = _steps()
    found, made = {name: [] for name in steps}, {}
    for n in range(_ROUNDS + 1):
        for name, (rule, step) in steps.items():
            times, made[name] = _measured(rule, step, sharding)
            if n:
                found[name].append(times)
    results = {}
    for name, rounds in found.items():
        row = results[name] = {"made": made[name]}
        for clock, which in enumerate(("wall_s", "process_s")):
            row[which] = {
                stage: statistics.median(times[k][clock] for times in rounds)
                for k, stage in enumerate(_STAGES)
            }
            row[which]["total"] = statistics.median(sum(t[clock] for t in times) for times in rounds)
    base = results["float32, apply"]
    for name, row in results.items():
        row["to float32"] = {
            which: row[which]["total"] / base[which]["total"] for which in base if "_s" in which
        }
        seconds = "  ".join(
            f"{which[:-2]}: "
            + " + ".join(f"{row[which][stage]:.2f}" for stage in _STAGES)
            + f" = {row[which]['total']:.2f} s ({row['to float32'][which]:.2f} x)"
            for which in ("wall_s", "process_s")
        )
        parts = ", ".join(f"{count} {what}" for what, count in row["made"].items() if count)
        print(f"{name:16} {seconds}; {parts}")
    packages = ("jax", "jaxlib", "optax", *(["libtpu"] if platform == "tpu" else []))
    record = about(*packages) | {"chip": _CHIP} if platform == "tpu" else about(*packages)
    file = Path(__file__).parent / "results" / f"compile-{platform}.json"
    file.write_text(json.dumps({**record, "stages": _STAGES, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
