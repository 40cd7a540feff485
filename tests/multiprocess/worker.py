"""One process of a run on several: steps, saves, and dies when it is told to.

python -m tests.multiprocess.worker PROCESS COUNT PORT DEVICES FOLDER STEPS [WHEN STEP]
"""

import os
import signal
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large.checkpoint import api


def parameters():
    r = np.random.default_rng(0)
    return {"w": r.normal(size=(24, 16)).astype(np.float32), "odd": r.normal(size=(7, 5)).astype(np.float32)}


def gradients(step):
    """The same on every topology, so that a run's numbers do not depend on it."""
    r = np.random.default_rng(1000 + step)
    return {name: r.normal(size=x.shape).astype(np.float32) for name, x in parameters().items()}


def plain_rule():
    return jl.skip_nonfinite(jl.adamw(1e-2))


def rule(mesh):
    return jl.zero(plain_rule(), mesh, "data", min_bytes=0)


def placed(tree, mesh):
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, whole, x.__getitem__), tree)


def latest(folder):
    return max((int(f.name.removeprefix("step_")) for f in Path(folder).glob("step_*")), default=0)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def main(process, count, port, devices, folder, steps, when="", at="0"):
    jax.config.update("jax_num_cpu_devices", int(devices))
    if int(count) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"localhost:{port}", int(count), int(process))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    optimizer, params = rule(mesh), placed(parameters(), mesh)
    state = optimizer.init(params)
    start = latest(folder)
    if start:
        params, state = jl.restore(Path(folder) / f"step_{start}", (params, state))

    update = jax.jit(optimizer.update)
    apply = jax.jit(optax.apply_updates)  # by itself: fused with the rule it would be rounded otherwise

    for k in range(start + 1, int(steps) + 1):
        if when == "step" and k == int(at):
            die()
        updates, state = jax.block_until_ready(update(placed(gradients(k), mesh), state, params))
        params = apply(params, updates)
        if when == "save" and k == int(at):
            api._write_arrays = lambda folder, arrays: die()  # its part of the arrays is never written
        if when == "saved" and k == int(at):
            write = api._write_arrays

            def write_and_die(folder, arrays, write=write):
                write(folder, arrays)
                die()

            api._write_arrays = write_and_die
        beside = {"wait": False} if "BESIDE" in os.environ else {}
        jl.save(Path(folder) / f"step_{k}", (params, state), **beside)
        sys.stdout.write(f"step {k}\n")
        sys.stdout.flush()
    held = jax.tree.leaves(state.inner.inner[0].mu)[1].addressable_shards[0].data.size
    assert held * jax.device_count() == 24 * 16
    if int(process) == 0:
        np.savez(Path(folder) / "final.npz", **{k: np.asarray(x) for k, x in params.items()})
    assert jnp.isfinite(params["w"]).all()


if __name__ == "__main__":
    main(*sys.argv[1:])
