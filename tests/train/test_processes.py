"""A training run on several processes: the first of them owns the folder, and all are refused together."""

import os
import socket
import subprocess
import sys

import numpy as np
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


@pytest.fixture(scope="module")
def read_by_one(tmp_path_factory):
    return _read(tmp_path_factory.mktemp("one"), 1)


def _read(folder, count, *, other=False):
    """The batches that so many processes make of the same text on 6 devices, and the rows that each reads."""
    for p in range(count):
        text = folder / f"text{p}"
        text.mkdir()
        for n in range(40):
            content = bytes(33 + (n * k) % 90 for k in range(7 + 5 * n + (other and p)))
            (text / f"{n}.txt").write_bytes(content)
    port = free_port()
    command = [sys.executable, "-m", "tests.train.reader"]
    processes = []
    for i in range(count):
        with open(folder / f"log_{i}.txt", "w") as log:
            words = [*command, *map(str, (i, count, port, folder))]
            processes.append(subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log))
    try:
        codes = [process.wait(PATIENCE) for process in processes]
    finally:
        kill(processes)
    assert codes == [0] * count
    with np.load(folder / "batches.npz") as found:
        return dict(found)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_read_their_own_rows_of_the_same_batches(count, read_by_one, tmp_path):
    found = _read(tmp_path, count)
    for name in ("tokens", "mask"):
        np.testing.assert_array_equal(found[name], read_by_one[name])
    assert found["tokens"].shape == (4, 2, 12, 33)
    assert found["rows"].tolist() == [24 // count] * count


def test_processes_that_find_other_data_are_refused(tmp_path):
    with pytest.raises(AssertionError):
        _read(tmp_path, 2, other=True)
    assert (
        "processes have found other data than the first, got it on 1" in (tmp_path / "log_0.txt").read_text()
    )
    assert not (tmp_path / "batches.npz").exists()


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
