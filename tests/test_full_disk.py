"""Checkpoints on disks that are full or may not be written: one line, nothing left, what was there is whole."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large.checkpoint import _files, api

from .disks import mounted

pytest.importorskip("orbax.checkpoint")
_ROOT = Path(__file__).parents[1]


def _tree(elements=3000):
    values = np.random.default_rng(0).normal(size=(6, elements)).astype(np.float32)  # does not compress
    return {f"w{i}": jnp.asarray(x) for i, x in enumerate(values)}


def _refused(path, tree, code, **options):
    with pytest.raises(jl.CheckpointError) as caught:
        jl.save(path, tree, **options)
    error = caught.value
    text = str(error)
    assert len(text.splitlines()) == 1
    assert text.startswith(f"save: '{path}' could not be written, got {errno.errorcode[code]} (")
    assert isinstance(error, OSError)
    assert error.errno == code
    assert error.__cause__ is None
    assert error.__context__ is None  # none of the thousand lines of threads' tracebacks
    return text


def _refusing(code, at=1):
    """A function that the system refuses at the call of that number; the calls before do nothing."""
    calls = []

    def refuse(*args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("stage", ["folder", "arrays", "manifest", "sync", "name"])
@pytest.mark.parametrize("there", [False, True])
def test_a_refusal_at_any_stage(stage, code, there, tmp_path, monkeypatch):
    if there:
        jl.save(tmp_path / "c", {"w": jnp.ones(2)})
    with monkeypatch.context() as patch:
        match stage:
            case "folder":
                patch.setattr(Path, "mkdir", _refusing(code))
            case "arrays":
                patch.setattr(api, "_write_arrays", _refusing(code))
            case "manifest":
                patch.setattr(Path, "write_text", _refusing(code))
            case "sync":
                patch.setattr(_files.os, "fsync", _refusing(code, at=3))
            case "name":
                patch.setattr(api, "_write_arrays", lambda *_: None)
                rename = Path.rename

                def refuse(self, target):
                    if self.name == ".c.part":
                        raise OSError(code, os.strerror(code))
                    return rename(self, target)

                patch.setattr(Path, "rename", refuse)
        text = _refused(tmp_path / "c", {"w": jnp.zeros(2)}, code, overwrite=True)
    assert ("it takes up to 65" in text) == (code not in (errno.EROFS, errno.EACCES))
    assert (" are free" in text) == (code not in (errno.EROFS, errno.EACCES))
    assert [f.name for f in tmp_path.iterdir()] == (["c"] if there else [])
    if there:
        assert jl.restore(tmp_path / "c", {"w": jnp.zeros(2)})["w"].tolist() == [1.0, 1.0]


def test_what_tensorstore_says_of_the_system_is_understood(tmp_path, monkeypatch):
    def refuse(*_):
        try:
            raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left [os_error_code='28']")
        except ValueError as error:
            raise ExceptionGroup("several", [KeyError("x"), error]) from None

    monkeypatch.setattr(api, "_write_arrays", refuse)
    _refused(tmp_path / "c", _tree(), errno.ENOSPC)


def test_what_nobody_understands_keeps_its_cause(tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("a bug\nof many lines")

    monkeypatch.setattr(api, "_write_arrays", refuse)
    with pytest.raises(
        jl.CheckpointError, match="could not be written, got RuntimeError: a bug of many lines;"
    ) as c:
        jl.save(tmp_path / "c", _tree())
    assert isinstance(c.value.__cause__, RuntimeError)
    assert not list(tmp_path.iterdir())


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("")
    _refused(tmp_path / "file" / "c", _tree(), errno.ENOTDIR)


@pytest.mark.parametrize("limit", [100, 4000, 10_000])
def test_files_that_may_not_grow(limit, tmp_path, capfd):
    """A short write, and then an error: as a quota has it, and without a mount."""
    jl.save(tmp_path / "before", _tree())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        _refused(tmp_path / "c", _tree(), errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr().err == ""
    assert [f.name for f in tmp_path.iterdir()] == ["before"]
    jl.restore(tmp_path / "before", _tree())


@pytest.mark.parametrize("left", [0, 8, 24, 48, 80, 96])
def test_a_disk_that_fills_up(left, tmp_path, capfd):
    """Full at the folder, among the arrays, at the manifest: wherever that many KiB are used up."""
    tree = _tree()
    with mounted(tmp_path / "disk", 2**19) as disk:
        jl.save(disk / "before", tree)
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left * 1024))
        text = _refused(disk / "c", tree, errno.ENOSPC)
        assert f"{left}.00 KiB are free" in text or left == 0
        assert "Free some space." in text
        assert sorted(f.name for f in disk.iterdir()) == ["before", "filler"]
        _refused(disk / "before", tree, errno.ENOSPC, overwrite=True)
        jl.restore(disk / "before", tree)
        assert sorted(f.name for f in disk.iterdir()) == ["before", "filler"]
        (disk / "filler").unlink()
        jl.save(disk / "c", tree)
        jl.restore(disk / "c", tree)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_by_hand_it_is_one_traceback(tmp_path):
    """In a process of its own, threads that still write when the first has failed included."""
    program = (
        "import jax.numpy as jnp, numpy as np, jaxopt_large as jl\n"
        "x = np.random.default_rng(0).normal(size=(30, 100, 100)).astype(np.float32)\n"
        f"jl.save({str(tmp_path / 'disk' / 'c')!r}, {{str(i): jnp.asarray(w) for i, w in enumerate(x)}})\n"
    )
    with mounted(tmp_path / "disk", 2**18) as disk:
        found = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, cwd=_ROOT, timeout=120
        )
        assert not list(disk.iterdir())
    lines = found.stderr.splitlines()
    assert lines[-1].startswith("jaxopt_large.checkpoint._manifest.NotWrittenError: save: ")
    assert len(lines) < 20, found.stderr
