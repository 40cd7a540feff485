"""A training run on several processes: the first of them owns the folder, and all are refused together."""

import os
import socket
import subprocess
import sys

import pytest

from jaxopt_large.train.lock import Lock

from ..processes import ENVIRONMENT, PATIENCE, ROOT, free_port, kill

pytestmark = pytest.mark.slow


def _train(runs, steps, *how):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.trainer", *map(str, (i, 2, port, runs, steps, *how))],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    try:
        shown = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        kill(processes)
    return [process.returncode for process in processes], shown


def test_the_first_process_owns_the_folder(tmp_path):
    codes, shown = _train(tmp_path, 4)
    assert codes == [0, 0], "\n".join(shown)
    assert "run digits finished" in shown[0]
    run = tmp_path / "digits"
    assert {f.name for f in (run / "checkpoints").iterdir()} == {"step_00000002", "step_00000004"}
    assert not (run / ".lock").exists()
    lock = Lock(run)
    lock.take()
    codes, shown = _train(tmp_path, 8, "resume")
    lock.release()
    assert codes == [2, 2], "\n".join(shown)
    assert f"is being run by process {os.getpid()} on host {socket.gethostname()}" in shown[0]
    assert "refused: train: the run was refused; its first process says why." in shown[1]
