"""What training steps of configurations take on TPUs that are not there, by the TPU compiler's own account.

    python benchmarks/runs.py configs/gpt3_175b.yaml v5p:8x8x16   # in an environment of `make tpu`

The whole step is compiled, as `jaxopt-large train` would run it: loss, gradients in micro-batches, clipping,
the rule, new parameters. With --keep it is saved in results/runs.json, by configuration and topology.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import numpy as np
from _record import about
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large.gradient_norm import watched
from jaxopt_large.models import make_model
from jaxopt_large.train.execution import JitExecution

_FILE = Path(__file__).parent / "results" / "runs.json"
_GIB = 2**30
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def compiled(config, topology):
    """The step of a configuration, compiled for a topology."""
    sizes = config.placement.mesh
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = Mesh(
        np.array(devices[: config.placement.devices]).reshape(*sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
    )
    rule = jl.build(config, mesh=mesh, around=watched)
    run = JitExecution(config, make_model(config.model), rule, mesh)
    state = jl.abstract_state(rule, run.params)
    whole = NamedSharding(mesh, PartitionSpec())
    shardings = jax.tree.map(lambda x: x.sharding or whole, state)
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
    train, place = config.train, NamedSharding(mesh, PartitionSpec(None, config.placement.data_axis))
    shape = (train.accumulate, train.batch // train.accumulate, config.data.context + 1)
    batch = {"tokens": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)}
    return run.jitted(shardings).lower(run.params, state, batch).compile()


def record_of(step):
    memory, found = step.memory_analysis(), jl.plan.collectives(step)
    return {
        "gib": {
            "arguments": memory.argument_size_in_bytes / _GIB,
            "temporaries": memory.temp_size_in_bytes / _GIB,
            "peak": memory.peak_memory_in_bytes / _GIB,
        },
        "collectives": {
            kind: {
                "count": found.count(kind),
                "in loops": found.inside_loops().count(kind),
                "gib": found.bytes(kind) / _GIB,
            }
            for kind in _KINDS
            if found.count(kind)
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("topology")
    parser.add_argument("--set", nargs="*", default=[], help="settings, as of jaxopt-large train")
    parser.add_argument("--keep", action="store_true", help="save the record")
    args = parser.parse_args()
    config = jl.load(args.config, args.set)
    began = time.perf_counter()
    try:
        record = record_of(compiled(config, args.topology))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        record = {"refused": str(error).splitlines()[0]}
    seconds = time.perf_counter() - began
    name = " ".join([f"{config.name} on {args.topology}", *args.set])
    print(f"{name}: {_in_words(record)}; compiled in {seconds:.0f} s")
    if args.keep:
        records = json.loads(_FILE.read_text()) if _FILE.exists() else {}
        records[name] = {**about("jax", "jaxlib", "libtpu"), "seconds": round(seconds), **record}
        _FILE.write_text(json.dumps(records, indent=1) + "\n")


def _in_words(record):
    if "refused" in record:
        return record["refused"]
    gib = ", ".join(f"{what} {x:.2f}" for what, x in record["gib"].items())
    rows = [
        f"  {kind:20} {row['count']:4} ({row['in loops']} in loops) {row['gib']:9.2f} GiB"
        for kind, row in record["collectives"].items()
    ]
    return "\n".join([f"GiB a chip: {gib}", *rows])


if __name__ == "__main__":
    main()
