"""One process at a time in a run's folder."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxopt_large.train import RunError, RunWriteError, lock, loop
from jaxopt_large.train.lock import Lock

from ..disks import mounted, remount
from .runs import command, run


@pytest.fixture
def holder(tmp_path):
    """Another process that runs `runs/digits`."""
    folder = tmp_path / "runs" / "digits"
    (folder / "checkpoints" / "step_00000003").mkdir(parents=True)
    (folder / "config.yaml").write_text("name: digits\n")
    program = f"import fcntl, os, socket, time\nfile = open({str(folder / '.lock')!r}, 'w')\n"
    program += "fcntl.flock(file, fcntl.LOCK_EX)\n"
    program += "file.write(f'process {os.getpid()} on host {socket.gethostname()}')\nfile.flush()\n"
    program += "print('locked', flush=True)\ntime.sleep(600)\n"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize(
    "how", [["--resume"], ["--overwrite"], [], ["--resume", "--fall-back"]], ids=" ".join
)
def test_a_second_process_is_refused_and_told_of_the_first(holder, tmp_path, capfd, how):
    folder = tmp_path / "runs" / "digits"
    before = sorted(f.relative_to(folder) for f in folder.rglob("*"))
    code, _, err = command(capfd, tmp_path / "runs", *how)
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{str(folder)!r} is being run by process {holder.pid} on host {socket.gethostname()}" in err
    assert sorted(f.relative_to(folder) for f in folder.rglob("*")) == before


def test_a_killed_process_holds_nothing(holder, tmp_path):
    folder = tmp_path / "runs" / "digits"
    with pytest.raises(RunError, match=f"process {holder.pid}"):
        Lock(folder).take()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (folder / ".lock").exists()  # left behind
    taken = Lock(folder)
    assert taken.take() == ""
    assert (folder / ".lock").read_text() == f"process {os.getpid()} on host {socket.gethostname()}\n"
    with pytest.raises(RunError, match=f"process {os.getpid()}"):
        Lock(folder).take()
    taken.release()
    assert not (folder / ".lock").exists()


def test_who_is_refused_leaves_the_lock_alone(tmp_path):
    first, second = Lock(tmp_path), Lock(tmp_path)
    first.take()
    with pytest.raises(RunError, match="is being run by"):
        second.take()
    second.release()
    with pytest.raises(RunError, match="is being run by"):
        Lock(tmp_path).take()
    first.release()
    second.take()
    second.release()


def test_a_lock_whose_file_goes_while_it_is_taken_is_none(tmp_path, monkeypatch):
    """The first process ends between the second's opening of the file and its locking."""
    first, flock = Lock(tmp_path), fcntl.flock
    first.take()

    def late(descriptor, how):
        first.release()
        return flock(descriptor, how)

    second = Lock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(lock.fcntl, "flock", late)
        second.take()
    with pytest.raises(RunError, match="is being run by"):
        Lock(tmp_path).take()
    second.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    note = Lock(tmp_path).take()
    assert note.startswith(f"train: {str(tmp_path)!r} has no locks, got ")
    assert note.endswith("See to it that no other process runs it.")
    assert not list(tmp_path.iterdir())
    if code == errno.ENOLCK:
        shown = run(tmp_path / "runs", "train.steps=1")
        assert "has no locks, got ENOLCK. See to it that no other process runs it." in shown
        assert "run digits finished" in shown
        assert not (tmp_path / "runs" / "digits" / ".lock").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, code, capfd):
    opened = os.open

    def refuse(path, *rest, **options):
        if str(path).endswith(".lock"):
            raise OSError(code, os.strerror(code))
        return opened(path, *rest, **options)

    monkeypatch.setattr(lock.os, "open", refuse)
    status, _, err = command(capfd, tmp_path / "runs")
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"digits' could not be written, got {errno.errorcode[code]} (" in err
    assert not (tmp_path / "runs").exists()


def test_a_read_only_file_system(tmp_path, capfd):
    with mounted(tmp_path / "disk", 2**20) as disk:
        (disk / "runs" / "digits").mkdir(parents=True)
        remount(disk, "ro")
        for words in (["--resume"], ["--overwrite"], ["--set", "name=another"]):
            status, _, err = command(capfd, disk / "runs", *words)
            assert (status, len(err.splitlines())) == (1, 1)
            assert "could not be written, got EROFS (Read-only file system). Give a folder that" in err


def test_the_lock_is_held_while_the_run_runs_and_gone_afterwards(tmp_path, monkeypatch):
    seen = []
    save = loop._Run._save

    def saving(self, progress):
        with pytest.raises(RunError, match=f"process {os.getpid()} on host"):
            run(tmp_path, resume=True)
        seen.append((tmp_path / "digits" / ".lock").exists())
        save(self, progress)

    monkeypatch.setattr(loop._Run, "_save", saving)
    run(tmp_path, "train.steps=3")
    assert seen == [True]
    assert not (tmp_path / "digits" / ".lock").exists()


def test_what_fails_before_it_begins_leaves_nothing_and_removes_nothing(tmp_path, capfd):
    text = "data={kind: text, path: /no/such/folder}"
    words = ["--set", text, "--set", "model={kind: transformer, layers: 1, width: 8, heads: 1}"]
    glob = ["--set", "optimizer.groups={nothing: {rule: freeze}, '*': {rule: sgd, learning_rate: 0.1}}"]
    for broken in (words, glob):
        code, _, err = command(capfd, tmp_path / "runs", *broken)
        assert (code, len(err.splitlines())) == (2, 1), err
        assert not (tmp_path / "runs").exists()
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "mine.txt").write_text("mine")
    code, _, _ = command(capfd, tmp_path / "runs", "--overwrite", *glob)
    assert code == 2
    assert [f.name for f in (tmp_path / "runs" / "digits").iterdir()] == ["mine.txt"]
    assert issubclass(RunWriteError, RunError)
