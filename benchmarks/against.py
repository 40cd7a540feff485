"""Has a change cost anything? This checkout beside another commit, in turn (A B A B).

    python benchmarks/against.py COMMIT        # 12 minutes

Each turn is a process of its own, with one commit's package and this checkout's benchmarks:

- step: AdamW, clip + AdamW and AdamW with int8 moments on one leaf of 16 M elements, by `jl.apply` and by
  `update`: the time of a step, to optax's in float32 in the same process.
- storage: steps with int8 moments by `update`, 4 leaves of 8 M elements, gradients given and computed: the
  time to float32's, and temporaries in units of the largest float32 leaf.
- placement: `zero(optax.adamw)` on 8 simulated devices: time and peak, to optax's replicated.
- trace: seconds to trace `apply` and `update` of clip + AdamW with int8 moments, on a GPT's 123 leaves.

Printed and saved in results/against.json, of each turn.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).parent
_CASES = ("AdamW", "clip + AdamW", "AdamW int8")
_TURNS = 4


def _step() -> dict[str, float]:
    from _programs import case

    found = {}
    for name in _CASES:
        rows = case({"w": (4096, 4096)}, name, rounds=9, torch=False)
        found |= {f"{name}, {how}, to optax": rows[how]["to optax"] for how in ("apply", "update")}
    return found


def _storage() -> dict[str, float]:
    import storage

    found = {}
    for make, words in ((storage.updated, "given"), (storage._computed, "computed")):
        for name, row in storage._measured(4, make).items():
            if "int8" in name:
                found[f"{name}, {words}, to float32"] = row["ratio"]
                found[f"{name}, {words}, temporaries"] = row["temporaries"]
    return found


def _placement() -> dict[str, float]:
    import placement

    (rows,) = placement._simulated().values()
    ours, theirs = rows["jl.zero(optax.adamw)"], rows["optax, replicated"]
    return {
        "zero, time to replicated": ours["step_ms"]["median"] / theirs["step_ms"]["median"],
        "zero, peak to replicated": ours["peak_bytes"] / theirs["peak_bytes"],
    }


def _trace() -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    import optax

    import jaxopt_large as jl

    layer = [(768, 768)] * 4 + [(768, 3072), (3072, 768)] + [(768,)] * 4
    shapes = {f"{i}_{j}": s for i in range(12) for j, s in enumerate(layer)}
    shapes |= {"tokens": (50304, 768), "positions": (1024, 768), "norm": (768,)}
    params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    rule = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    rule = jl.stored(rule, mu=jl.int8(), nu=jl.int8())
    state = jax.eval_shape(rule.init, params)
    steps = {
        "apply": lambda g, s, p: jl.apply(rule, g, s, p),
        "update": lambda g, s, p: rule.update(g, s, p),
    }
    seconds = {name: [] for name in steps}
    for _ in range(5):
        for name, step in steps.items():
            jax.clear_caches()  # as in a new process
            began = time.perf_counter()
            jax.jit(lambda *args, step=step: step(*args)).trace(params, state, params)
            seconds[name].append(time.perf_counter() - began)
    return {f"trace of {name}, seconds": statistics.median(s[1:]) for name, s in seconds.items()}


_KINDS = {"step": _step, "storage": _storage, "placement": _placement, "trace": _trace}


def _turn(folder: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
    found = {}
    for kind in _KINDS:
        command = [sys.executable, __file__, "--measure", kind]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def main(commit: str) -> None:
    from _record import about

    here = str(_HERE.parent)
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "-C", here, "archive", commit], capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        turns = [(_turn(folder), _turn(here)) for _ in range(_TURNS)]
    results = {
        name: {"before": [before[name] for before, _ in turns], "now": [now[name] for _, now in turns]}
        for name in turns[0][0]
    }
    for name, row in results.items():
        medians = {which: statistics.median(xs) for which, xs in row.items()}
        words = "  ".join(
            f"{which} {m:.3f} ({min(row[which]):.3f} to {max(row[which]):.3f})"
            for which, m in medians.items()
        )
        print(f"{name:44} {words}")
    record = about("jax", "jaxlib", "optax") | {"before": commit, "results": results}
    (_HERE / "results" / "against.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        sys.path.append(str(_HERE))
        print(json.dumps(_KINDS[sys.argv[2]]()))
    else:
        main(sys.argv[1])
