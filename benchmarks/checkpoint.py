"""Checkpoints beside orbax's own, and training steps beside a checkpoint that is being written.

    python benchmarks/checkpoint.py [--gib 1 4] [--rounds 5] [--keep]

In each round the same tree of random float32, and one of AdamW's state in int8, is saved and restored by
`jl.save` and `jl.restore`, which sum up and verify every byte, and by orbax's StandardCheckpointer as it
comes, which does neither, in turn (A B A B). Ours syncs to the disk: how long that takes for orbax's folder
is given by itself. Seconds are medians, with the least and the most. Then a training step of 0.1 to 0.3 s is
timed with and without `jl.save(..., wait=False)` at work beside it. With --keep the result is saved as
results/checkpoint.json.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from _record import about

import jaxopt_large as jl

_LEAF = (16, 1024, 1024)  # 64 MiB in float32


def _tree(gib, kind):
    """Arrays of so many GiB together; of int8 the codes and scales of both moments."""

    @jax.jit
    def leaf(key):
        return jax.random.normal(key, _LEAF)

    keys = jax.random.split(jax.random.key(0), int(gib * (16 if kind == "float32" else 32)))
    if kind == "float32":
        return jax.block_until_ready({f"w{n}": leaf(key) for n, key in enumerate(keys)})
    rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    step = jax.jit(lambda x, state: rule.update({"w": x}, state, {"w": x})[1])
    fresh = rule.init({"w": jnp.zeros(_LEAF)})
    return jax.block_until_ready({f"w{n}": step(leaf(key), fresh) for n, key in enumerate(keys)})


def _timed(function):
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def _sync(folder):
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def beside_orbax(gib, kind, rounds, root):
    tree = _tree(gib, kind)
    plain = dict(enumerate(jax.tree.leaves(tree)))  # orbax knows no states of ours
    plain = {str(n): x for n, x in plain.items()}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), plain)
    size = sum(x.nbytes for x in plain.values())
    seconds = {name: [] for name in ("save", "orbax save", "orbax sync", "restore", "orbax restore")}
    with ocp.StandardCheckpointer() as orbax:
        for _ in range(rounds + 1):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()

            def theirs():
                orbax.save(root / "b", plain)
                orbax.wait_until_finished()
                return ()

            seconds["save"].append(_timed(lambda: jl.save(root / "a", tree) or ()))
            seconds["orbax save"].append(_timed(theirs))
            seconds["orbax sync"].append(_timed(lambda: _sync(root / "b") or ()))
            seconds["restore"].append(_timed(lambda: jl.restore(root / "a", like)))
            seconds["orbax restore"].append(_timed(lambda: orbax.restore(root / "b", bare)))
    found = {name: _spread(times[1:]) for name, times in seconds.items()}  # the first warms up
    ratios = {what: found[what]["median"] / found[f"orbax {what}"]["median"] for what in ("save", "restore")}
    return {"gib": size / 2**30, "seconds": found, "ratio": ratios}


def _spread(times):
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def beside_steps(gib, rounds, root):
    """Milliseconds of a step, with and without a checkpoint of so many GiB being written beside it."""
    tree = _tree(gib, "float32")
    x = jax.random.normal(jax.random.key(0), (2048, 2048))
    step = jax.jit(lambda x: jnp.tanh(x @ x) @ x * 1e-3)
    step(x).block_until_ready()
    alone, beside = [], []
    for _ in range(rounds):
        alone += [_timed(lambda: step(x)) for _ in range(10)]
        shutil.rmtree(root, ignore_errors=True)
        saving = jl.save(root / "c", tree, wait=False)
        while not saving.done:
            beside.append(_timed(lambda: step(x)))
        saving.wait()
    found = {"alone": _spread(alone), "beside": _spread(beside)}
    return {"gib": gib, "seconds": found, "ratio": found["beside"]["median"] / found["alone"]["median"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, nargs="*", default=[1.0, 4.0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="save the record")
    args = parser.parse_args()
    record = {**about("jax", "jaxlib", "orbax-checkpoint", "tensorstore"), "beside orbax": {}}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        for gib in args.gib:
            for kind in ("float32", "int8"):
                found = record["beside orbax"][f"{gib:g} GiB, {kind}"] = beside_orbax(
                    gib, kind, args.rounds, root
                )
                shown = ", ".join(f"{k} {v['median']:.2f} s" for k, v in found["seconds"].items())
                ratios = ", ".join(f"{k} {v:.2f}" for k, v in found["ratio"].items())
                print(
                    f"{gib:g} GiB, {kind} ({found['gib']:.2f} GiB): {shown}; {ratios} of orbax's", flush=True
                )
        record["beside steps"] = beside_steps(1.0, args.rounds, root)
        shown = {k: f"{1000 * v['median']:.0f} ms" for k, v in record["beside steps"]["seconds"].items()}
        print(f"a step: {shown}, {record['beside steps']['ratio']:.2f}")
    if args.keep:
        file = Path(__file__).parent / "results" / "checkpoint.json"
        file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
