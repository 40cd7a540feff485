"""How long a newcomer waits: `jaxopt-large --help`, and importing the package beside importing JAX.

    python benchmarks/startup.py

Alternates the commands (A B C A B C ...), prints medians and spread, and saves them under
benchmarks/results/.
"""

import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

_ROUNDS = 15
_COMMANDS = {
    "help": [sys.executable, "-m", "jaxopt_large", "--help"],
    "import jax, optax": [sys.executable, "-c", "import jax, optax"],
    "import jaxopt_large as jl; jl.adamw": [sys.executable, "-c", "import jaxopt_large as jl; jl.adamw"],
}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in _COMMANDS}
    for _ in range(_ROUNDS):
        for name, command in _COMMANDS.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    results = {
        name: {"median": statistics.median(t), "least": min(t), "most": max(t)} for name, t in seconds.items()
    }
    for name, r in results.items():
        print(f"{name:40} {r['median']:.3f} s  ({r['least']:.3f} to {r['most']:.3f})")
    ours, theirs = list(results)[2], list(results)[1]
    print(f"ours / JAX and optax alone: {results[ours]['median'] / results[theirs]['median']:.2f}")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    record = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version(), "jax": version("jax"), "optax": version("optax")},
        "seconds": results,
    }
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "startup.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
