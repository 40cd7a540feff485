"""Several processes over gloo on one machine: sharded alike, killed, and restarted with fewer."""

import random
import shutil
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
from jaxopt_large.checkpoint._manifest import read_manifest

from ..processes import ENVIRONMENT, PATIENCE, ROOT, free_port, kill
from . import worker

pytestmark = pytest.mark.slow
_STEPS = 5


def _start(folder, count, devices, doomed=(), *, beside=False):
    """`doomed`: (when, step) for the last process; `beside`: checkpoints are written beside the steps."""
    port, environment = free_port(), ENVIRONMENT | ({"BESIDE": "1"} if beside else {})
    runs = []
    for process in range(count):
        fate = doomed if process == count - 1 else ()
        command = [sys.executable, "-m", "tests.multiprocess.worker"]
        command += map(str, (process, count, port, devices, folder, _STEPS, *fate))
        log = open(folder / f"log_{count}_{process}.txt", "w")  # noqa: SIM115
        with log:
            runs.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
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


def test_processes_write_beside_their_steps(tmp_path, uninterrupted):
    _finish(_start(tmp_path, 2, 4, beside=True), tmp_path)
    _same(_final(tmp_path), uninterrupted)
    _same(_restored(tmp_path, (3,)), uninterrupted)
    assert sorted(f.name for f in tmp_path.glob("*step_*")) == [f"step_{k}" for k in range(1, _STEPS + 1)]


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.full)])
def test_one_is_killed_at_any_moment_while_they_write_beside(kills, tmp_path, uninterrupted):
    """Whole checkpoints only, and whoever goes on from the last ends where all end."""
    chance = random.Random(20261130)
    for _ in range(kills):
        before = len(list(tmp_path.glob("step_*")))
        if before >= _STEPS - 1:
            shutil.rmtree(tmp_path / f"step_{before}")  # so that there is something left to do
            before -= 1
        runs = _start(tmp_path, 2, 2, beside=True)
        deadline = time.monotonic() + PATIENCE
        while (
            not any(tmp_path.glob(".step_*.part")) and runs[0].poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.5))
        runs[chance.randrange(2)].kill()
        kill(runs)
    _finish(_start(tmp_path, 2, 2, beside=True), tmp_path)
    _same(_final(tmp_path), uninterrupted)
    for step in tmp_path.glob("step_*"):
        read_manifest(step)


_READING = """
import os, sys
from pathlib import Path
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jaxopt_large as jl
process, count, port, devices, path, what = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", int(devices))
if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(process))
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
spec = P("data") if what == "rows" else P(None, "data")
like = {k: jax.ShapeDtypeStruct((4800, 4800), jnp.float32, sharding=NamedSharding(mesh, spec)) for k in "ab"}
values = np.random.default_rng(0).normal(size=(4800, 4800)).astype(np.float32)
if what == "save":
    tree = {k: jax.make_array_from_callback(x.shape, x.sharding, values.__getitem__) for k, x in like.items()}
    jl.save(path, tree)
else:
    def read():
        return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
    import orbax.checkpoint
    before = read()
    back = jl.restore(path, like)
    for x in back.values():
        assert x.sharding == NamedSharding(mesh, spec)
        assert all(np.array_equal(s.data, values[s.index]) for s in x.addressable_shards)
    print("READ", (read() - before) / sum(s.data.nbytes for x in back.values() for s in x.addressable_shards))
"""


@pytest.mark.parametrize("what", ["rows", "columns"])
def test_each_process_reads_what_it_needs(what, tmp_path):
    """Written by two processes along columns; read by three, along columns and along rows, and as it was."""

    def run(count, devices, what):
        port = free_port()
        command = [sys.executable, "-c", _READING]
        runs = [
            subprocess.Popen(
                [*command, *map(str, (p, count, port, devices, tmp_path / "c", what))],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for p in range(count)
        ]
        outs = [r.communicate(timeout=PATIENCE)[0] for r in runs]
        assert all(r.returncode == 0 for r in runs), outs
        return [
            float(line.split()[1]) for out in outs for line in out.splitlines() if line.startswith("READ")
        ]

    run(2, 2, "save")
    found = run(3, 2, what)
    assert len(found) == 3
    assert max(found) < 1.1, found
