"""Has a change cost anything? This checkout's steps beside another commit's, in turn (A B A B).

    python benchmarks/against.py COMMIT

Each turn is a process of its own, with one commit's package and this checkout's benchmark: AdamW, clip +
AdamW and AdamW with int8 moments on one leaf of 16 M elements, each by `jl.apply` and by `update`, beside
optax in the same process. Printed and saved in results/against.json: the ratio to optax, of each turn.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_CASES = ("AdamW", "clip + AdamW", "AdamW int8")
_TURNS = 3


def _measure() -> None:
    """In a process of its own: a row of ratios, as JSON."""
    sys.path.append(str(_HERE))
    from _programs import case

    ratios = {}
    for name in _CASES:
        rows = case({"w": (4096, 4096)}, name, rounds=9, torch=False)
        ratios |= {f"{name}, {how}": rows[how]["to optax"] for how in ("apply", "update")}
    print(json.dumps(ratios))


def _turn(folder: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, "--measure"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


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
        print(
            f"{name:22}", *(f"{which}: {', '.join(f'{x:.2f}' for x in xs):18}" for which, xs in row.items())
        )
    record = about("jax", "jaxlib", "optax") | {"before": commit, "to optax": results}
    (_HERE / "results" / "against.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    _measure() if sys.argv[1:] == ["--measure"] else main(sys.argv[1])
