"""What a step costs: `jl.apply` beside optax, beside `update`, and beside the same bytes rewritten.

    python benchmarks/step.py                   # 12 minutes on 2 CPU cores, with small trees

Runs on CPU, GPU and TPU; on the last two the trees have their true sizes. Each tree and rule is one set of
programs that run in turn (A B C A B C ...), every buffer donated. Milliseconds are medians, with quartiles;
GB/s counts the floor, which is gradient, parameter and state read once and the last two written once;
`rewrite` reads and writes as many bytes in place, with no arithmetic to speak of. Beside them, where they can
be imported, torch's fused AdamW (float32), bitsandbytes' 8-bit AdamW, and on GPU FlashOptim's AdamW, on the
same tree. First, how long 1,000 leaves of 10 shapes take to trace and compile, in caches that are empty.
Saved as results/step-PLATFORM.json.
"""

import importlib.util
import json
import os
import statistics
import time
from pathlib import Path

if not any(map(importlib.util.find_spec, ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin"))):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from _programs import CASES, applied, case, gpt, resnet, updated
from _record import about
from _rows import line

_PLATFORM = jax.default_backend()
_SMALL = _PLATFORM == "cpu"

_TREES = (
    {"one leaf, 16 M": {"w": (4096, 4096)}, "GPT, 17 M": gpt(4, 512, 8192), "300 leaves": resnet(300, 64)}
    if _SMALL
    else {
        "one leaf, 134 M": {"w": (8192, 16384)},
        "GPT, 124 M": gpt(12, 768, 50304),
        "GPT, 1.3 B": gpt(24, 2048, 50304),
        "300 leaves": resnet(300, 128),
        "300 leaves' bytes in one": {
            "w": (sum(9 if n % 4 == 0 else 4 if n % 4 == 1 else 0 for n in range(300)) * 128, 128)
        },
    }
)


def _compile_times():
    params = {f"p{n}": jnp.ones((32 * (n % 10 + 1), 256)) for n in range(1000)}
    ours, theirs = CASES["clip + AdamW"][0](), CASES["clip + AdamW"][1]()
    steps = {
        "optax": (theirs, updated(theirs)),
        "apply": (ours, applied(ours)),
        "apply, optax's rule": (theirs, applied(theirs)),
    }
    found = {name: [] for name in steps}
    jax.config.update("jax_enable_compilation_cache", False)
    for _ in range(3):
        for name, (rule, step) in steps.items():
            state = jax.eval_shape(rule.init, params)
            jax.clear_caches()  # as in a new process
            began = time.perf_counter()
            traced = jax.jit(lambda *a, step=step: step(*a)).trace(params, state, params)
            middle = time.perf_counter()
            traced.lower().compile()
            found[name].append((middle - began, time.perf_counter() - middle))
    return {
        name: {
            "trace_s": statistics.median(t for t, _ in times),
            "compile_s": statistics.median(c for _, c in times),
        }
        for name, times in found.items()
    }


def main() -> None:
    results = {}
    results["1,000 leaves of 10 shapes, clip + AdamW"] = times = _compile_times()
    for name, row in times.items():
        print(f"  {name:28} trace {row['trace_s']:.2f} s, compile {row['compile_s']:.2f} s")
    for tree, shapes in _TREES.items():
        for name in CASES:
            rows = results[f"{tree}: {name}"] = case(shapes, name)
            _save(results)
            print(f"{tree}: {name}")
            for key, row in rows.items():
                print(line(key, row), flush=True)
    _save(results)


def _save(results) -> None:
    """Also in between, so that a run that is cut off leaves what it has."""
    record = {**about("jax", "optax"), "device": jax.devices()[0].device_kind, "results": results}
    file = Path(__file__).parent / "results" / f"step-{_PLATFORM}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
