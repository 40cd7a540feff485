"""Checkpoints that are written beside the training step: the same ones, and no worse when something fails."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.checkpoint import _parts, _saving, api

pytest.importorskip("orbax.checkpoint")
_ROOT = Path(__file__).parents[1]


def _tree(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "w": jax.random.normal(keys[0], (64, 96)),
        "b": jax.random.normal(keys[1], (7,)).astype(jnp.bfloat16),
        "key": keys[2],
        "host": np.arange(5),
        "n": 3,
        "none": jnp.zeros((0, 4)),
    }


def _same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture
def slow(monkeypatch):
    """Writing waits until it is let go."""
    go, write = threading.Event(), api._write_arrays

    def waiting(folder, arrays):
        assert go.wait(60)
        write(folder, arrays)

    monkeypatch.setattr(api, "_write_arrays", waiting)
    yield go
    go.set()
    _saving.wait_for_last()


def test_arrays_may_be_donated_while_it_is_written(slow, tmp_path):
    tree = _tree()
    kept = jax.tree.map(lambda x: x, _tree())
    saving = jl.save(tmp_path / "c", tree, metadata={"a": 1}, wait=False)
    jax.jit(lambda x: x * 0, donate_argnums=0)(tree["w"]).block_until_ready()
    tree["host"][:] = 0
    assert tree["w"].is_deleted()
    assert not saving.done
    assert not (tmp_path / "c").exists()
    slow.set()
    saving.wait()
    assert saving.done
    _same(jl.restore(tmp_path / "c", kept), kept)
    assert jl.read_metadata(tmp_path / "c") == {"a": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["c"]


def test_it_holds_what_one_that_waits_holds(tmp_path, mesh8):
    tree = {"w": jax.device_put(_tree()["w"], NamedSharding(mesh8, P("data")))}
    jl.save(tmp_path / "a", tree)
    jl.save(tmp_path / "b", tree, wait=False).wait()
    one, other = (json.loads((tmp_path / n / "manifest.json").read_text())["content"]["arrays"] for n in "ab")
    assert one == other


@pytest.mark.parametrize("room", [0, 64 * 96 * 4, 64 * 96 * 4 + 100, None])
def test_what_has_no_room_is_written_before_it_returns(room, tmp_path):
    tree = _tree()
    jl.save(tmp_path / "c", tree, wait=False, host_bytes=room).wait()
    _same(jl.restore(tmp_path / "c", tree), tree)
    assert (tmp_path / "c" / "arrays.0").exists() == (room is not None and room <= 64 * 96 * 4)


def test_room_is_a_number(tmp_path):
    with pytest.raises(ValueError, match=r"save: host_bytes is out of range, got -1; an integer >= 0"):
        jl.save(tmp_path / "c", _tree(), wait=False, host_bytes=-1)


@pytest.mark.parametrize("act", [jl.save, jl.restore, jl.restore_changed])
def test_remote_stores_are_refused(act):
    with pytest.raises(
        ValueError, match=r"a remote store is not supported, got 'gs://bucket/c'; folders whose"
    ):
        act("gs://bucket/c", {"w": jnp.zeros(2)})
    with pytest.raises(ValueError, match="a remote store is not supported"):
        jl.read_metadata("s3://bucket/c")
    assert not Path("gs:").exists()


def test_another_save_waits_for_it(slow, tmp_path):
    first = jl.save(tmp_path / "a", _tree(0), wait=False)
    threading.Timer(0.2, slow.set).start()
    jl.save(tmp_path / "b", _tree(1))
    assert first.done
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("who", ["wait", "save"])
def test_whoever_waits_first_is_told(who, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:

        def full(folder, arrays):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(api, "_write_arrays", full)
        saving = jl.save(tmp_path / "a", _tree(), wait=False)
        saving.wait_for_end()
    with pytest.raises(jl.CheckpointError, match=r"save: '.*/a' could not be written, got ENOSPC") as caught:
        saving.wait() if who == "wait" else jl.save(tmp_path / "b", _tree())
    assert len(str(caught.value).splitlines()) == 1
    saving.wait()  # it has been told
    assert list(tmp_path.iterdir()) == []
    jl.save(tmp_path / "b", _tree())


def test_a_thread_that_dies_is_told_too(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "_write_arrays", lambda folder, arrays: sys.exit(3))
    saving = jl.save(tmp_path / "a", _tree(), wait=False)
    with pytest.raises(SystemExit):
        saving.wait()
    assert not (tmp_path / "a").exists()


_PROGRAM = """
import jax, jax.numpy as jnp, sys, time
import jaxopt_large as jl
from jaxopt_large.checkpoint import api
write = api._write_arrays
def slowly(folder, arrays):
    print("writing", flush=True)
    time.sleep(1.0)
    write(folder, arrays)
api._write_arrays = slowly
saving = jl.save(sys.argv[1], {"w": jnp.arange(100000.0)}, wait=False)
if sys.argv[2] == "interrupt":
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "interrupt"])
def test_the_end_of_a_program_waits_for_it(how, tmp_path):
    command = [sys.executable, "-c", _PROGRAM, str(tmp_path / "c"), how]
    run = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "writing\n"
    if how == "interrupt":
        run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert (run.returncode == 0) == (how == "end"), err
    assert ("KeyboardInterrupt" in err) == (how == "interrupt")
    assert jl.restore(tmp_path / "c", {"w": jnp.zeros(100000)})["w"][-1] == 99999


def test_who_is_interrupted_while_waiting_loses_nothing(slow, tmp_path, monkeypatch):
    """It is not over, and is still the last: another save waits for it, and does not come before it."""
    saving = jl.save(tmp_path / "c", {"w": jnp.zeros(3)}, wait=False)
    for waits in (saving.wait, _saving.wait_for_last):
        with monkeypatch.context() as patch:
            patch.setattr(saving._over, "wait", _interrupted)
            with pytest.raises(KeyboardInterrupt):
                waits()
        assert not saving.done
    threading.Timer(0.2, slow.set).start()
    jl.save(tmp_path / "c", {"w": jnp.ones(3)}, overwrite=True)
    assert saving.done
    assert jl.restore(tmp_path / "c", {"w": jnp.zeros(3)})["w"].tolist() == [1.0, 1.0, 1.0]


def _interrupted(*args):
    raise KeyboardInterrupt


def test_who_restores_it_waits_for_it(slow, tmp_path):
    jl.save(tmp_path / "c", {"w": jnp.zeros(3)}, wait=False)
    threading.Timer(0.2, slow.set).start()
    assert jl.restore(tmp_path / "c", {"w": jnp.ones(3)})["w"].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "model"), P("data", "model")])
def test_of_replicas_one_is_copied(spec, tmp_path):
    mesh = make_mesh((4, 2), ("data", "model"))
    x = jax.device_put(_tree()["w"], NamedSharding(mesh, spec))
    copy = _saving.copied({"w": x})["w"]
    held = (
        copy.nbytes if isinstance(copy, np.ndarray) else sum(s.data.nbytes for s in copy.addressable_shards)
    )
    assert held == x.nbytes
    now, later = _saving.parted({"w": x}, x.nbytes)
    assert (list(now), list(later)) == ([], ["w"])
    jl.save(tmp_path / "c", {"w": x}, wait=False).wait()
    _same(jl.restore(tmp_path / "c", {"w": x}), {"w": x})


def test_others_may_log_errors_meanwhile(slow, tmp_path, caplog):
    saving = jl.save(tmp_path / "c", {"w": jnp.zeros(3)}, wait=False)
    logging.getLogger("absl").error("the loss is no number")
    assert "the loss is no number" in caplog.text
    slow.set()
    saving.wait()


@pytest.mark.slow
def test_a_failure_that_nobody_waits_for_is_said_at_the_end(tmp_path):
    program = _PROGRAM.replace(
        "    write(folder, arrays)\n", "    raise OSError(28, 'No space left on device')\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "c"), "end"]
    run = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith("save: ")
    assert not (tmp_path / "c").exists()


# --- checksums of parts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [P(), P("data"), P(None, "data"), P("data", "model"), P(("data", "model"))])
@pytest.mark.parametrize("limit", [64, 2**24])
def test_parts_are_known_again_on_any_mesh(spec, limit, monkeypatch):
    monkeypatch.setattr(_parts, "_LARGEST", limit)
    mesh = make_mesh((4, 2), ("data", "model"))
    x = jax.random.normal(jax.random.key(0), (16, 24))
    parts = _parts.parts_of({"x": jax.device_put(x, NamedSharding(mesh, spec)), "n": np.arange(3.0)})
    assert _parts.covers(x.shape, parts["x"])
    for other in (P(), P("model"), P(None, ("data", "model")), P("data")):
        moved = {"x": jax.device_put(x, NamedSharding(mesh, other)), "n": np.arange(3.0)}
        assert _parts.changed(moved, parts) == {}
        for place in ((0, 0), (15, 23), (7, 11)):
            broken = np.asarray(x).copy()
            broken.view(np.uint32)[place] ^= 1 << 9
            found = _parts.changed(moved | {"x": jax.device_put(broken, NamedSharding(mesh, other))}, parts)
            assert list(found) == ["x"]
            assert all(a <= k < b for k, (a, b) in zip(place, found["x"], strict=True))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 5), (2, 3, 5), (1, 1, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8", "complex64"])
def test_parts_of_any_array(shape, dtype, monkeypatch):
    monkeypatch.setattr(_parts, "_LARGEST", 16)
    x = jnp.ones(shape, dtype)
    parts = _parts.parts_of({"x": x})
    assert _parts.covers(shape, parts["x"])
    assert _parts.changed({"x": x}, parts) == {}
    if x.size:
        other = np.asarray(x).copy()
        other[(0,) * x.ndim] = 0
        assert _parts.changed({"x": jnp.asarray(other)}, parts).keys() == {"x"}


def _restored(path, tree):
    """What is said of the damage; None where the values are what they were."""
    try:
        back = jl.restore(path, tree)
    except jl.CheckpointError as error:
        return str(error)
    _same(back, tree)
    return None


def test_a_flipped_bit_in_large_files_is_found_or_harms_nothing(tmp_path):
    """Files of arrays are read once: not all of their bytes are of an array."""
    tree = {"w": jax.random.normal(jax.random.key(0), (2**20, 2)), "v": jnp.arange(2.0**19)}
    jl.save(tmp_path / "c", tree)
    chance, found = np.random.default_rng(0), 0
    files = [f for f in (tmp_path / "c").rglob("*") if f.is_file() and f.stat().st_size > 2**20]
    assert files
    for file in files:
        content = file.read_bytes()
        for place in [len(content) - 1, *chance.integers(0, len(content), 12)]:
            broken = bytearray(content)
            broken[place] ^= 1 << int(chance.integers(8))
            file.write_bytes(broken)
            told = _restored(tmp_path / "c", tree)
            assert told is None or str(file) in told
            found += told is not None
        file.write_bytes(content)
    assert found > len(files) * 6


def test_one_that_a_version_before_wrote_is_read(tmp_path):
    """Of version 2: one checksum of each array, and CRCs of files."""
    from jaxopt_large.checkpoint._checksums import checksums
    from jaxopt_large.checkpoint._manifest import read_manifest, seal

    tree = {"w": jnp.arange(6.0).reshape(2, 3)}
    jl.save(tmp_path / "c", tree)
    content = read_manifest(tmp_path / "c")
    entry = content["arrays"]["w"]
    del entry["parts"]
    entry["checksum"] = checksums(tree)["w"]
    seal(tmp_path / "c" / "manifest.json", {**content, "version": 2})
    _same(jl.restore(tmp_path / "c", tree), tree)
    entry["checksum"] = "0" * 16
    seal(tmp_path / "c" / "manifest.json", {**content, "version": 2})
    with pytest.raises(jl.CheckpointError, match=r"its checksum does not fit, got .* at w"):
        jl.restore(tmp_path / "c", tree)


# --- memory ---------------------------------------------------------------------------------------------

_MEMORY = """
import sys, threading, time
import jax, jax.numpy as jnp, numpy as np
import jaxopt_large as jl
import orbax.checkpoint  # its modules take memory too
page = 4096
def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * page
peak, stop = [0], threading.Event()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], resident())
        time.sleep(0.002)
count, size = 8, 2**26
what, path = sys.argv[1:]
if what != "restore":
    values = np.random.default_rng(0).normal(size=size // 4).astype(np.float32)
    tree = {f"w{n}": jnp.asarray(values + n) for n in range(count)}
    jax.block_until_ready(tree)
    jl.save(path + "_small", {"w": jnp.arange(1e5)}, overwrite=True)
else:
    tree = {f"w{n}": jax.ShapeDtypeStruct((size // 4,), jnp.float32) for n in range(count)}
    jl.restore(path + "_small", {"w": jnp.zeros(100000)})
before = resident()
threading.Thread(target=watch, daemon=True).start()
if what == "restore":
    tree = jax.block_until_ready(jl.restore(path, tree))
    before += count * size
else:
    saving = jl.save(path, tree, wait=what == "wait", overwrite=True)
    if saving is not None:
        saving.wait()
stop.set()
print((peak[0] - before) / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells what a process holds")
def test_memory(tmp_path):
    """In arrays, of which there are 8: what saving and restoring take beyond what is held."""

    def arrays(what):
        command = [sys.executable, "-c", _MEMORY, what, str(tmp_path / "c")]
        # what is freed goes back to the system at once
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
        run = subprocess.run(
            command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert run.returncode == 0, run.stderr
        return float(run.stdout)

    found = {what: arrays(what) for what in ("wait", "beside", "restore")}
    assert found["wait"] < 8 * 0.1, found
    assert found["beside"] < 8 * 1.05, found
    assert found["restore"] < 3, found  # as it is read, and as it was on the disk
