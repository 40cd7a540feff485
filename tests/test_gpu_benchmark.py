"""`benchmarks/gpu.py`, for the day there is a GPU: rehearsed on a CPU, and what it does when things go wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

_ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(_ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.slow
def test_rehearsal(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--rehearse", "--out", tmp_path]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "gpu-rehearsal.json").read_text())
    assert {"date", "commit", "hardware", "versions", "device"} <= record.keys()
    assert [(f["status"], f["kernels"]) for f in record["correctness"].values()] == [("right", 1)] * 3
    crash, error, *timed = record["speed"].values()
    assert crash["why"] == "ended by SIGABRT: F1127 LLVM Fatal Error while rehearsing"
    assert error["why"] == "ZeroDivisionError: division by zero"
    assert len(timed) == 2
    for found in timed:
        for name in ("apply", "update", "optax, float32", "rewrite"):
            row = found["programs"][name]
            assert row["ms"]["low"] <= row["ms"]["median"] <= row["ms"]["high"]
            assert row["GB/s"] > 0
            assert row["to rewrite"] > 0
    assert "8 leaves: clip + AdamW" in done.stdout.split("Kernels beside XLA: 3 right")[1]


def _played(monkeypatch, tmp_path, script, *processes):
    """The script's exit status and record, given what happens in the processes that it starts."""
    gpu = script("gpu")
    started = []

    def events(options, end, longest):
        del end, longest
        started.append(options)
        yield {"event": "device", "device": "A GPU", "compute_capability": "9.0"}
        yield from processes[len(started) - 1] if len(started) <= len(processes) else [{"event": "end"}]

    monkeypatch.setattr(gpu, "_events", events)
    monkeypatch.setattr(gpu, "_driver", lambda: "")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    status = gpu.main()
    return status, json.loads((tmp_path / "gpu-a-gpu.json").read_text()), started


def _case(key, **found):
    return [{"event": "began", "key": key}, {"event": "done", "key": key, "found": found}]


_RIGHT = {"status": "right", "kernels": 1, "unequal": 0.0}
_END = {"event": "end"}


def test_a_wrong_kernel_is_a_failure(monkeypatch, tmp_path, script, capsys):
    wrong = _case("b", status="wrong", why="3 of 4 are far off")
    status, record, _ = _played(monkeypatch, tmp_path, script, [*_case("a", **_RIGHT), *wrong, _END])
    assert status == 1
    assert record["correctness"]["b"]["status"] == "wrong"
    assert "Kernels beside XLA: 1 right, 1 wrong\n  wrong b: 3 of 4 are far off" in capsys.readouterr().out


def test_a_case_that_ends_the_process_is_reported_and_the_rest_goes_on(monkeypatch, tmp_path, script):
    died = [{"event": "began", "key": "b"}, {"event": "died", "why": "ended by SIGABRT"}]
    rest = [*_case("c", **_RIGHT), _END]
    status, record, started = _played(monkeypatch, tmp_path, script, [*_case("a", **_RIGHT), *died], rest)
    assert {k: f["status"] for k, f in record["correctness"].items()} == {
        "a": "right",
        "b": "failed",
        "c": "right",
    }
    assert started[1]["done"] == ["a", "b"]
    assert status == 1


def test_times_are_taken_again_without_a_pytorch_that_ends_the_process(monkeypatch, tmp_path, script):
    died = [{"event": "began", "key": "t"}, {"event": "died", "why": "ended by SIGSEGV"}]
    right = [*_case("a", **_RIGHT), _END]
    timed = [*_case("t", status="timed", programs={"apply": {"error": "no memory"}}), _END]
    status, record, started = _played(monkeypatch, tmp_path, script, right, died, timed)
    assert [(s["phase"], s["torch"]) for s in started[1:]] == [("speed", True), ("speed", False)]
    assert record["speed"]["t"]["status"] == "timed"
    assert status == 0


def test_what_is_left_out_for_want_of_time_comes_at_the_end(monkeypatch, tmp_path, script):
    first = [*_case("a", **_RIGHT), {"event": "skipped", "key": "b", "why": "1 s left"}, _END]
    status, record, started = _played(
        monkeypatch, tmp_path, script, first, [_END], [*_case("b", **_RIGHT), _END]
    )
    assert [s["phase"] for s in started] == ["correctness", "speed", "correctness"]
    assert started[2]["done"] == ["a"]
    assert [f["status"] for f in record["correctness"].values()] == ["right", "right"]
    assert status == 0


@pytest.mark.parametrize(
    ("process", "status"),
    [([{"event": "refused", "why": "no GPU"}], 2), ([{"event": "died", "why": "?"}], 1)],
)
def test_nothing_compared_is_no_success(monkeypatch, tmp_path, script, process, status):
    (tmp_path / "gpu-a-gpu.json").write_text("{}")
    assert _played(monkeypatch, tmp_path, script, process)[0] == status


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (lambda x: x.copy(), None),
        (lambda x: x + (np.arange(x.size).reshape(x.shape) % 2).astype(x.dtype), "float32|bfloat16"),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 5, x[::-1], x).astype(x.dtype), None),
        (lambda x: np.concatenate([x[:, :-1], -x[:, -1:]], 1), "float32|bfloat16|int8"),
    ],
    ids=["equal", "neighboring codes", "one number", "the last column"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_differences_are_found(script, change, wrong, dtype):
    x = np.asarray(jnp.asarray(np.random.default_rng(0).integers(20, 100, size=(100, 60)), dtype))
    found, unequal = script("_gpu_cases")._differences({"w": change(x)}, {"w": x})
    if wrong and dtype in wrong.split("|"):
        assert "of 6000 of ['w'] are far off, the first at (0, " in found
    else:
        assert found is None
    assert (unequal > 0) == bool(np.any(change(x) != x))


def test_small_scales_are_compared_too(script):
    got, want = ({"scales": np.full((4, 4), x, np.float32)} for x in (1e-12, 2e-12))
    assert script("_gpu_cases")._differences(got, want)[0]


def test_neighbors_in_narrow_dtypes_differ_by_one(script):
    ordered = script("_gpu_cases")._ordered
    for dtype in (jnp.bfloat16, jnp.float8_e4m3fn):
        x = np.asarray(jnp.asarray([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0], dtype))
        n = ordered(x)
        assert np.all(np.diff(n) >= 0)
        assert n[2] == n[3] == 0
