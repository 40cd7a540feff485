"""What happens once per rule, at many leaves: 5,000 of 10 shapes, as in a mixture of experts not stacked.

    python benchmarks/growth.py [LEAVES [ROUNDS]]

For each wrapper, and for all of them together: `init`, `jl.explain`, `jl.state_shardings`, `jl.restore` of a
checkpoint, and the traces of `update` and of `apply`, in seconds and as ratios to the time that JAX takes to
trace optax's clip + AdamW over the same leaves in the same run. Each is the median of the rounds, in turn, of
which there are three; small leaves, so that what is measured is what is done for a leaf and not for its
elements. Saved as results/growth.json.
"""

import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import optax
from _programs import applied, updated
from _record import about

import jaxopt_large as jl

_SHAPES = [(48, 128), (64, 64), (128, 32), (32, 160), (96, 48), (40, 128), (128,), (256,), (64,), (16, 16)]


def _params(leaves: int) -> dict:
    shapes = [_SHAPES[n % len(_SHAPES)] for n in range(leaves)]
    zeros = {s: jnp.zeros(s) for s in _SHAPES}
    return {
        f"layer_{n // 10:04}": {f"w{k}": zeros[s] + 0.0 for k, s in enumerate(shapes[n : n + 10])}
        for n in range(0, leaves, 10)
    }


def _rules() -> dict:
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rule = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    grouped = jl.partition({"*w6|*w7|*w8": jl.adamw(1e-3), "*w9": jl.freeze(), "*": rule})
    formats = {"mu": jl.int8(), "nu": jl.int8()}
    return {
        "plain": rule,
        "partition": grouped,
        "stored": jl.stored(rule, **formats),
        "zero": jl.zero(rule, mesh, "data"),
        "accumulate": jl.accumulate(rule, 4),
        "all": jl.zero(jl.accumulate(jl.stored(grouped, **formats), 4), mesh, "data"),
    }


def _traced_update(rule, params, state) -> None:
    jax.clear_caches()
    jax.jit(updated(rule)).trace(params, state, params)


def _traced_apply(rule, params, state) -> None:
    jax.clear_caches()
    jax.jit(applied(rule)).trace(params, state, params)


def _works(params: dict) -> dict:
    """(rule, what is done) -> how."""
    optax_rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    begun = optax_rule.init(params)
    works = {("optax", "update"): lambda: _traced_update(optax_rule, params, begun)}
    folder = Path(tempfile.mkdtemp())
    for name, rule in _rules().items():
        state = rule.init(params)
        jl.save(folder / name, state)
        works |= {
            (name, "init"): lambda r=rule: jax.block_until_ready(r.init(params)),
            (name, "explain"): lambda r=rule: str(jl.explain(r, params)),
            (name, "state_shardings"): lambda r=rule: jl.state_shardings(r, params),
            (name, "restore"): lambda s=state, n=name: jl.restore(folder / n, s),
            (name, "update"): lambda r=rule, s=state: _traced_update(r, params, s),
            (name, "apply"): lambda r=rule, s=state: _traced_apply(r, params, s),
        }
    return works


def main() -> None:
    leaves, rounds = [*map(int, sys.argv[1:]), *(5000, 3)[len(sys.argv) - 1 :]]
    warnings.simplefilter("ignore")
    works = _works(_params(leaves))
    times = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            jax.clear_caches()
            began = time.perf_counter()
            work()
            times[key].append(time.perf_counter() - began)
    medians = {key: statistics.median(laps) for key, laps in times.items()}
    base = medians["optax", "update"]
    results = {}
    for (name, what), seconds in medians.items():
        ratio = seconds / base
        results.setdefault(name, {})[what] = {"s": seconds, "to optax": ratio, "all_s": times[name, what]}
        print(f"{name:12} {what:16} {seconds:8.2f} s {ratio:6.2f} x", flush=True)
    record = about("jax", "jaxlib", "optax", "orbax-checkpoint") | {
        "leaves": leaves,
        "rounds": rounds,
        "results": results,
    }
    if leaves == 5000:
        file = Path(__file__).parent / "results" / "growth.json"
        file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
