"""A run's checkpoints: written beside its steps, and which of them stay."""

import functools
import threading

import pytest

from jaxopt_large.checkpoint import api
from jaxopt_large.checkpoint._manifest import read_manifest
from jaxopt_large.config import Checkpoint, ConfigError
from jaxopt_large.train import RunError, train
from jaxopt_large.train.keeping import kept

from .runs import small

_SMALL = [
    "train.steps=12",
    "train.batch=32",
    "train.eval_every=3",
    "train.checkpoint_every=3",
    "model.hidden=[16]",
]
_config = functools.partial(small, settings=_SMALL)


def _steps(runs):
    return sorted(int(f.name.removeprefix("step_")) for f in (runs / "digits" / "checkpoints").iterdir())


def test_a_run_is_the_same_with_them_beside_it(tmp_path, quiet_console):
    """Bit for bit; `host_bytes: 0` writes all of it before the next step."""
    found = []
    for n, more in enumerate((["background=false"], [], ["host_bytes=0"], ["host_bytes=2KiB"])):
        runs = tmp_path / str(n)
        train(_config(*(f"train.checkpoint.{x}" for x in more)), runs=runs, console=quiet_console)
        assert _steps(runs) == [9, 12]
        arrays = read_manifest(runs / "digits" / "checkpoints" / "step_00000012")["arrays"]
        found.append({name: a["checksum"] for name, a in arrays.items()})
    assert found[0] == found[1] == found[2] == found[3]


def test_steps_go_on_while_it_is_written(tmp_path, quiet_console, monkeypatch):
    """The first is let go by the report of a later step: a run that waited for it would never end."""
    from jaxopt_large.train import loop

    go, write, report = threading.Event(), api._write_arrays, loop._Run._report

    def waiting(folder, arrays):
        assert "03" not in folder.parent.name or go.wait(60)
        write(folder, arrays)

    def reported(self, progress, step, metrics):
        report(self, progress, step, metrics)
        if step == 5:
            assert not (self.folder.path / "checkpoints" / "step_00000003").exists()
            go.set()

    monkeypatch.setattr(api, "_write_arrays", waiting)
    monkeypatch.setattr(loop._Run, "_report", reported)
    train(_config(), runs=tmp_path, console=quiet_console)
    assert go.is_set()
    assert _steps(tmp_path) == [9, 12]


def test_a_failure_ends_the_run_at_the_next_step(tmp_path, quiet_console, monkeypatch):
    """And what is safe is said."""
    from jaxopt_large.train import loop

    write, steps, failed = api._write_arrays, [], threading.Event()
    report = loop._Run._report

    def full(folder, arrays):
        if "06" in folder.parent.name:
            failed.set()
            raise OSError(28, "No space left on device")
        write(folder, arrays)

    def reported(self, progress, step, metrics):
        report(self, progress, step, metrics)
        steps.append(step)
        if step == 7:
            assert failed.wait(60)
            self.folder._saving.wait_for_end()

    monkeypatch.setattr(api, "_write_arrays", full)
    monkeypatch.setattr(loop._Run, "_report", reported)
    with pytest.raises(RunError, match=r"step_00000006' could not be written, got ENOSPC .* Step 3 is safe"):
        train(_config(), runs=tmp_path, console=quiet_console)
    assert max(steps) <= 8
    assert _steps(tmp_path) == [3]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, {50, 60}),
        ({"keep_every_hours": 1.0}, {10, 40, 50, 60}),
        ({"keep_every_hours": 0.1}, {10, 20, 30, 40, 50, 60}),
        ({"keep_best": 1}, {30, 50, 60}),
        ({"keep_best": 2}, {20, 30, 50, 60}),
        ({"keep_best": 1, "metric": "validation_accuracy"}, {10, 50, 60}),
        ({"keep_best": 9}, {10, 20, 30, 50, 60}),
    ],
)
def test_what_stays(policy, expected):
    seconds = {10: 100, 20: 1200, 30: 2400, 40: 4000, 50: 5000, 60: 6000}
    loss = {10: 4.0, 20: 2.0, 30: 1.0, 50: 3.0, 60: 3.5}  # one was not evaluated

    def told(step):
        metrics = {"validation_loss": loss[step], "validation_accuracy": loss[step]} if step in loss else {}
        return {"position": {"seconds": seconds[step]}, "metrics": metrics}

    assert kept([*seconds], 2, Checkpoint(**policy), told) == expected


def test_what_is_no_number_is_not_the_best():
    loss = {10: float("nan"), 20: 1.0, 30: 2.0, 40: float("inf")}
    policy = Checkpoint(keep_best=1)
    assert kept([*loss], 1, policy, lambda step: {"metrics": {"validation_loss": loss[step]}}) == {20, 40}


def test_only_what_was_evaluated_there_is_rated(tmp_path, quiet_console):
    settings = ["train.checkpoint_every=2", "train.eval_every=6", "train.keep=9"]
    train(_config(*settings), runs=tmp_path, console=quiet_console)
    told = {
        n: read_manifest(tmp_path / "digits" / "checkpoints" / f"step_{n:08d}")["metadata"]
        for n in (2, 6, 8, 12)
    }
    assert [bool(told[n]["metrics"]) for n in told] == [False, True, False, True]


def test_the_lock_stays_until_all_is_written(tmp_path, quiet_console, monkeypatch):
    """Also when something else ends the run."""
    from jaxopt_large.train import lock, loop

    go, write, release, seen = threading.Event(), api._write_arrays, lock.Lock.release, []
    report = loop._Run._report

    def waiting(folder, arrays):
        assert go.wait(60)
        write(folder, arrays)

    def reported(self, progress, step, metrics):
        report(self, progress, step, metrics)
        if step == 5:
            threading.Timer(0.3, go.set).start()
            raise RuntimeError("something else")

    def released(self):
        seen.append(_steps(tmp_path))
        release(self)

    monkeypatch.setattr(api, "_write_arrays", waiting)
    monkeypatch.setattr(loop._Run, "_report", reported)
    monkeypatch.setattr(lock.Lock, "release", released)
    with pytest.raises(RuntimeError, match="something else"):
        train(_config(), runs=tmp_path, console=quiet_console)
    assert seen == [[3]]


def test_the_best_stays(tmp_path, quiet_console):
    settings = ["train.keep=1", "train.checkpoint.keep_best=1", "train.steps=15"]
    settings += ["optimizer.groups.*.learning_rate={schedule: linear, peak: 50.0, warmup: 14}"]
    train(_config(*settings), runs=tmp_path, console=quiet_console)
    steps = _steps(tmp_path)
    assert steps[-1] == 15
    assert len(steps) == 2  # the loss grew at that rate


def test_a_run_in_a_remote_store_is_refused(quiet_console):
    with pytest.raises(RunError, match="train: a remote store is not supported, got 'gs://bucket/runs'"):
        train(_config(), runs="gs://bucket/runs", console=quiet_console)


def test_bad_settings(tmp_path, quiet_console):
    with pytest.raises(ConfigError, match=r"train.checkpoint.host_bytes: .*16GiB"):
        _config("train.checkpoint.host_bytes=lots")
    with pytest.raises(ConfigError, match=r"train.checkpoint.keep_every_hours"):
        _config("train.checkpoint.keep_every_hours=0")
    with pytest.raises(ConfigError, match=r"train.checkpoint.background"):
        _config("train.checkpoint.background=maybe")
    assert _config("train.checkpoint.host_bytes=2GiB").train.checkpoint.host_bytes == 2**31
