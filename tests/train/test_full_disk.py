"""Runs whose files the disk does not take: one line, exit code 1, and the way to go on."""

import errno
import os
from pathlib import Path

import pytest

from jaxopt_large.checkpoint import api
from jaxopt_large.train import RunWriteError
from jaxopt_large.train.folder import RunFolder

from ..disks import mounted, remount
from .runs import command, lines


def _full(*_, code=errno.ENOSPC):
    raise OSError(code, os.strerror(code))


def _steps(runs):
    return sorted(f.name for f in (runs / "digits" / "checkpoints").iterdir())


def test_a_checkpoint_that_does_not_fit(tmp_path, capfd, monkeypatch):
    write, runs = api._write_arrays, tmp_path / "my runs"
    with monkeypatch.context() as patch:
        patch.setattr(api, "_write_arrays", lambda f, a: _full() if "06" in f.parent.name else write(f, a))
        code, out, err = command(capfd, runs)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "step_00000006' could not be written, got ENOSPC (No space left on device); it takes up to " in err
    assert " are free. Free some space. Step 3 is safe: go on with " in err
    go_on = f"jaxopt-large train '{runs}/digits/config.yaml' --runs '{runs}' --resume\n"
    assert err.endswith(go_on)
    assert "finished" not in out
    assert _steps(runs) == ["step_00000003"]
    code, out, err = command(capfd, runs, "--resume")
    assert (code, err) == (0, "")
    assert _steps(runs) == ["step_00000003", "step_00000006"]
    assert [line["step"] for line in lines(runs / "digits") if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_fills_up_while_it_runs(tmp_path, capfd):
    with mounted(tmp_path / "disk", 92 * 1024) as disk:
        code, _, err = command(capfd, disk)
        assert (code, len(err.splitlines())) == (1, 1)
        assert "could not be written, got ENOSPC" in err
        assert "Step 3 is safe" in err
        assert _steps(disk) == ["step_00000003"]
        remount(disk, "size=2m")
        code, _, err = command(capfd, disk, "--resume")
        assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("config.yaml", "No step is saved yet."),
        ("curves.png", "Step 3 is safe"),
        ("summary.json", "Step 3 is safe"),
    ],
)
def test_other_files_that_do_not_fit(name, safe, tmp_path, capfd, monkeypatch):
    write = Path.write_bytes

    def refuse(self, data):
        write(self, data[:5])  # what fitted
        if self.name == f".{name}.part":
            _full(code=errno.EDQUOT)
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    code, _, err = command(capfd, tmp_path, "--set", "train.steps=3")
    assert (code, len(err.splitlines())) == (1, 1)
    assert f"train: '{tmp_path}/digits/{name}' could not be written, got EDQUOT (" in err
    assert "Free some space, or have the quota raised." in err
    assert safe in err
    left = {f.name for f in (tmp_path / "digits").iterdir()} if (tmp_path / "digits").exists() else set()
    assert not left & {name, f".{name}.part", ".lock"}


def _opened(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "digits", keep=2)
    folder.checkpoints.mkdir(parents=True)
    folder.open_metrics(0)
    return folder


def test_metrics_that_do_not_fit(tmp_path):
    folder = _opened(tmp_path)
    folder.log(step=1, loss=float("nan"))
    assert lines(folder.path) == [{"step": 1, "loss": None}]
    folder._metrics.close()
    with open("/dev/full", "ab", buffering=0) as full:
        folder._metrics = full
        with pytest.raises(
            RunWriteError, match=r"metrics.jsonl' could not be written, got ENOSPC \(.*No step is s"
        ):
            folder.log(step=2)
    (folder.checkpoints / "step_00000002").mkdir()
    with pytest.raises(RunWriteError, match=r"Step 2 is safe: go on with jaxopt-large train .* --resume$"):
        folder.write("no/folder.txt", "x")


def test_short_writes_are_gone_on_with(tmp_path):
    folder = _opened(tmp_path)
    whole = folder._metrics

    class Short:
        def write(self, data):
            return whole.write(data[:3])

    folder._metrics = Short()
    folder.log(step=1, loss=2.5)
    whole.close()
    assert lines(folder.path) == [{"step": 1, "loss": 2.5}]


def test_metrics_that_are_cut_at_a_resume_are_whole_or_as_they_were(tmp_path, monkeypatch):
    folder = _opened(tmp_path)
    for step in (1, 2, 3):
        folder.log(step=step)
    folder._metrics.close()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _full)
        with pytest.raises(RunWriteError, match="could not be written, got ENOSPC"):
            folder.open_metrics(2)
    assert [line["step"] for line in lines(folder.path)] == [1, 2, 3]
    assert not list(folder.path.glob(".*"))
    folder.open_metrics(2)
    folder._metrics.close()
    assert [line["step"] for line in lines(folder.path)] == [1, 2]


def test_the_command_to_go_on_names_the_folder_of_runs():
    assert (
        RunFolder(Path("runs/demo"), keep=1).resume_command
        == "jaxopt-large train runs/demo/config.yaml --resume"
    )
    other = RunFolder(Path("/data/my runs/demo"), keep=1).resume_command
    assert other == "jaxopt-large train '/data/my runs/demo/config.yaml' --runs '/data/my runs' --resume"
