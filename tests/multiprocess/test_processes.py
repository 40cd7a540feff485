"""Several processes over gloo on one machine: sharded alike, killed, and restarted with fewer."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.checkpoint._logical import unpadded

from ..processes import ENVIRONMENT, PATIENCE, ROOT, free_port, kill
from . import worker

pytestmark = pytest.mark.slow
_STEPS = 5


def _start(folder, count, devices, doomed=()):
    """`doomed`: (when, step) for the last process."""
    port = free_port()
    runs = []
    for process in range(count):
        fate = doomed if process == count - 1 else ()
        command = [sys.executable, "-m", "tests.multiprocess.worker"]
        command += map(str, (process, count, port, devices, folder, _STEPS, *fate))
        log = open(folder / f"log_{count}_{process}.txt", "w")  # noqa: SIM115
        with log:
            runs.append(subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log))
    return runs


def _finish(runs, folder):
    for run in runs:
        try:
            code = run.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            kill(runs)
            code = "a timeout"
        logs = "\n".join(f.read_text()[-3000:] for f in sorted(folder.glob("log_*")))
        assert code == 0, f"{code}\n{logs}"


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


@pytest.mark.parametrize(("count", "devices"), [(2, 4), pytest.param(3, 2, marks=pytest.mark.full)])
def test_processes_agree_with_one_and_their_checkpoints_fit_any_mesh(count, devices, tmp_path, uninterrupted):
    _finish(_start(tmp_path, count, devices), tmp_path)
    _same(_final(tmp_path), uninterrupted)
    _same(_restored(tmp_path, (1,)), uninterrupted)
    for sizes in ((3,), (4,), (2, 2), (3, 2)) if count == 2 else ():
        _same(_restored(tmp_path, sizes), uninterrupted)


def _restored(folder, sizes):
    """The last checkpoint on another mesh: the parameters, and a check of the state."""
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = make_mesh(sizes, ("data", "model")[: len(sizes)], devices=devices)
    optimizer, params = worker.rule(mesh), worker.placed(worker.parameters(), mesh)
    state = optimizer.init(params)
    params, state = jl.restore(folder / f"step_{_STEPS}", (params, state))
    nu = unpadded(state).inner[0].nu
    plain = worker.plain_rule()
    want, step = plain.init(worker.parameters()), jax.jit(plain.update)
    for k in range(1, _STEPS + 1):
        _, want = step(worker.gradients(k), want, worker.parameters())
    for name, x in want.inner[0].nu.items():
        np.testing.assert_allclose(np.asarray(nu[name]), np.asarray(x), rtol=1e-6)
    return {name: np.asarray(x) for name, x in params.items()}


@pytest.mark.parametrize(
    ("when", "count", "fewer"),
    [
        pytest.param("step", 3, 2, marks=pytest.mark.full),
        ("save", 3, 2),
        pytest.param("save", 2, 1, marks=pytest.mark.full),
        ("saved", 2, 1),
    ],
)
def test_one_is_killed_and_fewer_go_on(when, count, fewer, tmp_path, uninterrupted):
    runs = _start(tmp_path, count, 2, (when, 3))
    deadline = time.monotonic() + PATIENCE
    while runs[-1].poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert runs[-1].poll() == -signal.SIGKILL, (tmp_path / f"log_{count}_{count - 1}.txt").read_text()[-3000:]
    kill(runs)  # the survivors wait for it
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
