"""What 8-bit state costs in time and temporaries, on one CPU device, through plain XLA.

    python benchmarks/storage.py                # 3 minutes

AdamW in float32 beside AdamW with int8 moments, on the same 32 M parameters in 1, 4 or 16 leaves: a step
that is given gradients and applies its updates, and one that computes them by a small matrix product.
Medians of alternating rounds (A B A B ...). Temporaries are XLA's own account of the compiled step, in
units of the largest float32 leaf. Saved under benchmarks/results/.
"""

import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from _programs import updated
from _record import about

import jaxopt_large as jl

_ROUNDS = 12  # the first two are not counted
_COLUMNS = 4096
_ELEMENTS = 2**25
_LEAVES = (1, 4, 16)
_RULES = {
    "optax.adamw, float32": lambda: optax.adamw(1e-3),
    "float32": lambda: jl.adamw(1e-3),
    "int8": lambda: jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8()),
    "int8, split bfloat16": lambda: jl.stored(jl.adamw(1e-3), params=jl.split(), mu=jl.int8(), nu=jl.int8()),
}


def _computed(rule):
    apply = updated(rule)

    def loss(params, x):
        return sum(jnp.sum(jnp.square(x @ w.astype(x.dtype))) for w in params.values())

    def step(params, state, x):
        return apply(params, state, jax.grad(loss)(params, x))

    return step


def _program(name, leaves, make_step):
    rule = _RULES[name]()
    dtype = jnp.bfloat16 if "bfloat16" in name else jnp.float32
    rows = _ELEMENTS // _COLUMNS // leaves
    params = {str(i): jnp.ones((rows, _COLUMNS), dtype) for i in range(leaves)}
    if make_step is updated:
        last = {
            k: 0.01 * jax.random.normal(jax.random.key(int(k)), p.shape, dtype) for k, p in params.items()
        }
    else:
        last = 0.01 * jax.random.normal(jax.random.key(0), (4, rows))
    state = rule.init(params)
    step = jax.jit(make_step(rule), donate_argnums=(0, 1)).lower(params, state, last).compile()
    return step, [params, state], last


def _measured(leaves, make_step):
    programs = {name: _program(name, leaves, make_step) for name in _RULES}
    seconds = {name: [] for name in programs}
    for _ in range(_ROUNDS):
        for name, (step, carry, last) in programs.items():
            began = time.perf_counter()
            carry[:] = jax.block_until_ready(step(*carry, last))
            seconds[name].append(time.perf_counter() - began)
    found = {}
    for name, (step, _, _) in programs.items():
        low, median, high = statistics.quantiles(seconds[name][2:], n=4)
        found[name] = {
            "ms": {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high},
            "temporaries": step.memory_analysis().temp_size_in_bytes / (4 * _ELEMENTS // leaves),
        }
    for row in found.values():
        row["ratio"] = row["ms"]["median"] / found["float32"]["ms"]["median"]
    return found


def main() -> None:
    results = {}
    for make_step, words in ((updated, "gradients given"), (_computed, "gradients computed")):
        for leaves in _LEAVES:
            case = f"{words}, {leaves} x {_ELEMENTS // leaves // 2**20} M"
            results[case] = _measured(leaves, make_step)
            print(case)
            for name, row in results[case].items():
                ms = row["ms"]
                print(
                    f"  {name:22} {ms['median']:6.1f} ms ({ms['low']:.1f} to {ms['high']:.1f})"
                    f"  {row['ratio']:.2f} x float32  temporaries {row['temporaries']:.2f} leaves",
                    flush=True,
                )
    record = {
        **about("jax", "optax"),
        "results": results,
    }
    file = Path(__file__).parent / "results" / "storage.json"
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
