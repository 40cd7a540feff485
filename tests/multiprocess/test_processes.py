"""Several processes over gloo on one machine: sharded alike, killed, and restarted with fewer."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
_ROOT = Path(__file__).parents[2]
_STEPS = 5
_PATIENCE = 240  # seconds before a process that hangs is killed


def _port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _start(folder, count, devices, doomed=()):
    """`doomed`: (when, step) for the last process."""
    port, environment = _port(), {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    runs = []
    for process in range(count):
        fate = doomed if process == count - 1 else ()
        command = [sys.executable, "-m", "tests.multiprocess.worker"]
        command += map(str, (process, count, port, devices, folder, _STEPS, *fate))
        log = open(folder / f"log_{count}_{process}.txt", "w")  # noqa: SIM115
        with log:
            runs.append(subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=log, stderr=log))
    return runs


def _finish(runs, folder):
    for run in runs:
        try:
            code = run.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            _kill(runs)
            code = "a timeout"
        logs = "\n".join(f.read_text()[-3000:] for f in sorted(folder.glob("log_*")))
        assert code == 0, f"{code}\n{logs}"


def _kill(runs):
    for run in runs:
        run.kill()
        run.wait()


def _final(folder):
    with np.load(folder / "final.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    _finish(_start(folder, 1, 1), folder)
    return _final(folder)


def _same(got, want):
    assert got.keys() == want.keys()
    for name, x in want.items():
        # a leaf that is cut unevenly may differ in the last bit: its pieces are too short for vectors
        np.testing.assert_allclose(got[name], x, rtol=0 if name == "w" else 1e-6, err_msg=name)


@pytest.mark.parametrize(("count", "devices"), [(2, 4), (3, 2)])
def test_processes_agree_with_one(count, devices, tmp_path, uninterrupted):
    _finish(_start(tmp_path, count, devices), tmp_path)
    _same(_final(tmp_path), uninterrupted)


@pytest.mark.parametrize(
    ("when", "count", "fewer"), [("step", 3, 2), ("save", 3, 2), ("save", 2, 1), ("saved", 2, 1)]
)
def test_one_is_killed_and_fewer_go_on(when, count, fewer, tmp_path, uninterrupted):
    runs = _start(tmp_path, count, 2, (when, 3))
    deadline = time.monotonic() + _PATIENCE
    while runs[-1].poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert runs[-1].poll() == -signal.SIGKILL, (tmp_path / f"log_{count}_{count - 1}.txt").read_text()[-3000:]
    _kill(runs)  # the survivors wait for it
    assert not (tmp_path / "final.npz").exists()
    whole = sorted(f.name for f in tmp_path.glob("step_*"))
    # what was being written has no name yet; when every part was written, the first process may name it
    assert whole[:2] == ["step_1", "step_2"]
    assert len(whole) == 2 or when == "saved"
    _finish(_start(tmp_path, fewer, 2), tmp_path)
    _same(_final(tmp_path), uninterrupted)
    logs = (tmp_path / f"log_{fewer}_0.txt").read_text()
    steps = [line for line in logs.splitlines() if line.startswith("step ")]
    assert steps[0] == f"step {len(whole) + 1}"  # it resumed, and did not start afresh
