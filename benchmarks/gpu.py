"""Kernels on an NVIDIA GPU: are they right, and how fast are they?

    python benchmarks/gpu.py                    # at most 7 minutes, on one GPU that nothing else uses
    python benchmarks/gpu.py --rehearse         # on a CPU, at toy sizes: half a minute, meaningless times

First `jl.apply` with kernels beside XLA, each step from the same state, on small odd shapes: formats, kinds
of parameters, rules, clipping, skipped steps. Then times, programs side by side (A B C A B C ...): AdamW
with int8 moments (and parameters plain, split or rounded), clip + AdamW and AdamW in float32, on one leaf of
134 M elements, GPT-2's 124 M, and 300 small leaves; beside optax, beside the same bytes rewritten in place,
which is the floor of memory, and beside torch's fused AdamW, bitsandbytes and FlashOptim where they can be
imported. What time is left goes to more comparisons.

Printed: a line per case as it ends, then what is not right, and a table: milliseconds of a step (median and
quartiles), GB/s of the least bytes that the step must move, and its time as a multiple of the rewrite's, of
`update`'s, of optax's AdamW in float32 and of PyTorch's. Saved as they come in results/gpu-DEVICE.json. A
case that fails, or takes the process with it, is reported and the rest goes on; those for which time is short
are left out, and said. The exit status is 1 if a kernel is wrong, a comparison failed or none was made, and 2
if there is no GPU.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from _record import about
from _rows import line

_HERE = Path(__file__).parent
_PHASES = [("correctness", 0.45), ("speed", 1.0), ("correctness", 1.0)]  # -> share of the time, at its end
_LONGEST = {"correctness": 90, "speed": 150}  # seconds of a case
_BESIDE = ("rewrite", "update", "optax AdamW, float32")
_PYTORCHS = ("torch", "bitsandbytes", "FlashOptim")
_NOT_PREALLOCATED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # PyTorch has the rest
_AS_WRITTEN = "--xla_allow_excess_precision=false"  # a flag of XLA's: to bfloat16 wherever it says so


class _Report:
    """What is known so far, on disk."""

    def __init__(self, folder, rehearse):
        self.folder, self.rehearse = folder, rehearse
        beside = ("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch", "bitsandbytes", "flashoptim")
        self.record = about("jax", "optax", beside=beside) | {"driver": _driver()}
        self.found = {"correctness": {}, "speed": {}}
        self.began = time.time()

    def save(self):
        name = re.sub(r"[^a-z0-9]+", "-", self.record.get("device", "none").lower())
        file = self.folder / f"gpu-{'rehearsal' if self.rehearse else name}.json"
        seconds = round(time.time() - self.began, 1)
        file.write_text(json.dumps({**self.record, "seconds": seconds, **self.found}, indent=1) + "\n")
        return file

    def add(self, phase, key, found):
        self.found[phase][key] = found
        self.save()
        for text in _lines(key, found):
            print(text, flush=True)

    def done(self, phase):
        return [k for k, found in self.found[phase].items() if found["status"] != "skipped"]

    def wrong(self):
        """What makes the run a failure."""
        compared = self.found["correctness"]
        return [k for k, found in compared.items() if found["status"] in ("wrong", "failed")]


def main() -> int:
    sys.path.insert(0, str(_HERE.parent))  # the package of this checkout
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="in all, at most (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at toy sizes")
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="folder (%(default)s)")
    options = parser.parse_args()
    report = _Report(options.out, options.rehearse)
    end = report.began + 60 * options.minutes - 2
    for n, (phase, share) in enumerate(_PHASES):
        if n > 1 and len(report.done(phase)) == len(report.found[phase]):
            continue
        print(f"\n{phase}", flush=True)
        if refused := _phase(phase, report, report.began + share * (end - report.began), end):
            print(refused, file=sys.stderr)
            return 2
    file = report.save()
    print(f"\n{_summary(report)}\n\nSaved in {file}; {time.time() - report.began:.0f} s")
    return 1 if report.wrong() or not report.done("correctness") else 0


def _phase(phase, report, until, end):
    """All cases of a phase, in as many processes as it takes; returns why none can run, or None."""
    torch = True
    while True:
        done = report.done(phase)
        options = {"phase": phase, "until": until, "done": done, "torch": torch, "rehearse": report.rehearse}
        running, why = None, None
        for event in _events(options, end, _LONGEST[phase]):
            match event["event"]:
                case "refused":
                    return event["why"]
                case "device":
                    if "device" not in report.record:
                        print(f"  {event['device']}, compute capability {event['compute_capability']}")
                    report.record |= {k: v for k, v in event.items() if k != "event"}
                case "began":
                    running = event["key"]
                case "done":
                    running = None
                    report.add(phase, event["key"], event["found"])
                case "skipped":
                    report.add(phase, event["key"], {"status": "skipped", "why": event["why"]})
                case "end":
                    return None
                case "died":
                    why = event["why"]
        if running is not None and time.time() > end:
            report.add(phase, running, {"status": "skipped", "why": "out of time"})
        elif running is not None and phase == "speed" and torch and not report.rehearse:
            torch = False  # two CUDAs in one process may not agree
            print(f"  {running}: {why}; once more without PyTorch", flush=True)
        elif running is not None:
            report.add(phase, running, {"status": "failed", "why": why})
        elif report.done(phase) == done:
            print(f"  no case began: {why}", flush=True)
            return None
        if time.time() > end:
            return None


def _events(options, end, longest):
    """What happens in a process that runs cases, and how it died if it did not come to its end."""
    with tempfile.TemporaryDirectory() as folder:
        log, events = Path(folder) / "log", Path(folder) / "events"
        events.touch()
        environment = os.environ | _NOT_PREALLOCATED
        if options["phase"] == "correctness":
            environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {_AS_WRITTEN}"
        if options["rehearse"]:
            environment |= {"JAX_PLATFORMS": "cpu"}
        arguments = [sys.executable, _HERE / "_gpu_cases.py", json.dumps(options | {"events": str(events)})]
        with open(log, "w") as output, open(events) as lines:
            process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
            try:
                last, text = time.time(), ""
                while (ended := process.poll()) is None and time.time() < min(end, last + longest):
                    while (text := text + lines.readline()).endswith("\n"):
                        yield json.loads(text)
                        last, text = time.time(), ""
                    time.sleep(0.05)
                yield from map(json.loads, (text + lines.read()).splitlines())
            finally:
                process.kill()
                process.wait()
        taken = f"killed after {time.time() - last:.0f} s"
        yield {
            "event": "died",
            "why": taken if ended is None else _reason(ended, log.read_text(errors="replace")),
        }


def _reason(status, log):
    """How a process ended, and what it said last of it."""
    how = f"exit status {status}" if status >= 0 else f"ended by {signal.Signals(-status).name}"
    said = [
        line.strip() for line in log.splitlines() if re.search(r"error|fatal|exception", line, re.IGNORECASE)
    ]
    return f"{how}: {said[-1][:300]}" if said else how


def _driver():
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _lines(key, found):
    """A case that has ended, as text."""
    match found["status"]:
        case "skipped":
            return []
        case "timed":
            return [f"  {key}", *(f"  {line(name, row)}" for name, row in found["programs"].items())]
        case "right":
            unequal = f"up to {found['unequal']:.2%} of a result not equal"
            return [f"  right     {key}: {found['kernels']} kernels, {unequal}"]
    return [f"  {found['status']:9} {key}: {found['why']}"]


def _summary(report):
    """What is not right, what is missing, and a row per tree and rule."""
    from jaxopt_large._tables import table

    compared, timed = report.found["correctness"], report.found["speed"]
    count = Counter(found["status"] for found in compared.values())
    parts = ["Kernels beside XLA: " + ", ".join(f"{n} {status}" for status, n in count.items())]
    for key, found in (compared | timed).items():
        if found["status"] not in ("right", "timed", "skipped"):
            parts.append(f"  {found['status']} {key}: {found['why']}")
        for name, row in found.get("programs", {}).items():
            if "error" in row:
                parts.append(f"  failed {key}, {name}: {row['error']}")
    if left := [key for key, found in timed.items() if found["status"] == "skipped"]:
        parts.append("Not timed, for want of time: " + "; ".join(left))
    timed = {key: found.get("programs", {}) for key, found in timed.items()}
    rows = [_row(key, programs) for key, programs in timed.items() if "ms" in programs.get("apply", {})]
    head = (
        "apply",
        "ms",
        "from - to",
        "GB/s",
        "x rewrite",
        "x update",
        "x optax AdamW",
        "x PyTorch's",
        "kernels",
    )
    return "\n".join(parts) + "\n\n" + table(head, rows)


def _row(key, programs):
    apply, ms = programs["apply"], programs["apply"]["ms"]
    times = {name: row["ms"]["median"] for name, row in programs.items() if "ms" in row}
    peers = [name for name in times if name.startswith(_PYTORCHS)]
    beside = [f"{times['apply'] / times[name]:.2f}" if name in times else "" for name in _BESIDE]
    peer = f"{times['apply'] / times[peers[0]]:.2f} ({peers[0]})" if peers else ""
    spread = f"{ms['low']:.2f} - {ms['high']:.2f}"
    return (key, f"{ms['median']:.2f}", spread, f"{apply['GB/s']:.0f}", *beside, peer, str(apply["kernels"]))


if __name__ == "__main__":
    sys.exit(main())
