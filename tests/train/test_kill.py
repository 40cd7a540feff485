"""SIGKILL at random moments, saves included: the run that resumes ends as the one that was not killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxopt_large.checkpoint._manifest import read_manifest

_ROOT = Path(__file__).parents[2]
_STEPS = 200
_LIMIT = 120  # seconds that one process may take before the test gives up on it


def _start(runs, cache, *words):
    sets = {
        "train.steps": _STEPS,
        "train.batch": 16,
        "train.eval_every": 50,
        "train.checkpoint_every": 2,
        "model.hidden": "[16]",
        "placement.mesh": "{data: 2}",
    }
    command = [sys.executable, "-m", "jaxopt_large", "train", "configs/digits_mlp.yaml", "--runs", str(runs)]
    command += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    # a cache of its own: what is killed while it writes leaves half an entry
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    return subprocess.Popen(
        [*command, *words], cwd=_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def _finish(process):
    _, err = process.communicate(timeout=_LIMIT)
    assert process.returncode == 0, err.decode()


def _wait_for(process, condition):
    """Polls until the condition holds or the process ends; True in the first case."""
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.001)
    raise TimeoutError


def _final(runs):
    manifest = read_manifest(runs / "digits" / "checkpoints" / f"step_{_STEPS:08d}")
    return manifest["arrays"], manifest["metadata"]["position"]["data"]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.full)])
def test_killed_at_random_moments(kills, tmp_path):
    cache, chance = tmp_path / "cache", random.Random(20261123)
    _finish(_start(tmp_path / "whole", cache))
    runs = tmp_path / "killed"
    checkpoints = runs / "digits" / "checkpoints"

    def steps():
        return {f.name for f in checkpoints.glob("step_*")} if checkpoints.is_dir() else set()

    def saving():
        return checkpoints.is_dir() and any(checkpoints.glob(".step_*.part"))

    killed, during_saves = 0, 0
    while killed < kills:
        process, before = _start(runs, cache, "--resume"), steps()
        kind = chance.choice(["start", "loop", "save", "save"])
        if kind == "start":  # imports, compilation, restoring
            time.sleep(chance.uniform(0.0, 4.0))
        else:  # once it goes on: between two steps, or in one of the next few saves
            _wait_for(process, lambda seen=before: steps() - seen)
            time.sleep(chance.uniform(0.0, 0.2))
            during_saves += kind == "save" and _wait_for(process, saving)
        process.send_signal(signal.SIGKILL)
        killed += process.wait(_LIMIT) == -signal.SIGKILL
        process.stderr.close()
        assert process.returncode == -signal.SIGKILL, "the run ended before all kills were made"
    assert during_saves >= kills // 4
    _finish(_start(runs, cache, "--resume"))
    assert _final(runs) == _final(tmp_path / "whole")
    assert not list(checkpoints.glob(".*"))


@pytest.mark.slow
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    cache, runs = tmp_path / "cache", tmp_path / "runs"
    checkpoints = runs / "digits" / "checkpoints"
    endless = ["--set", "train.steps=1000000"]
    first = _start(runs, cache, *endless)
    try:
        assert _wait_for(first, lambda: checkpoints.is_dir() and any(checkpoints.glob("step_*")))
        for how in ("--resume", "--overwrite"):
            second = _start(runs, cache, *endless, how)
            _, err = second.communicate(timeout=_LIMIT)
            assert second.returncode == 2
            assert f"is being run by process {first.pid} on host " in err.decode()
            assert len(err.splitlines()) == 1
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
        first.stderr.close()
    steps = int(max(f.name for f in checkpoints.glob("step_*")).removeprefix("step_"))
    _finish(_start(runs, cache, "--resume", "--set", f"train.steps={steps + 2}"))
    assert (checkpoints / f"step_{steps + 2:08d}").is_dir()
