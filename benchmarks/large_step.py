"""The optimizer's step alone on GPT-3's tree, by the TPU compiler, for 1,024 v5p that are not there.

    python benchmarks/large_step.py          # in an environment of `make tpu`; all cases
    python benchmarks/large_step.py zero-1   # those whose name has it; saved in results/large_step.json

Clip + AdamW by `jl.apply`, parameters in bfloat16 as gradients are, divided over `model` (ZeRO-1) or over
`data` as well (FSDP); moments in float32, or in 8 bits with residuals of the parameters. Temporaries are to
stay within 1 GiB a chip.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _record import about
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

import jaxopt_large as jl
from jaxopt_large.models import make_model
from jaxopt_large.train.shardings import placed_params

_FILE = Path(__file__).parent / "results" / "large_step.json"
_CONFIG = Path(__file__).parents[1] / "configs" / "gpt3_175b.yaml"
_GIB = 2**30
_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_PLACEMENTS = {"zero-1": ["placement.fsdp=null"], "fsdp": []}


_STORAGE = {
    "float32": lambda rule: jl.stored(rule, mu=jl.float32(), nu=jl.float32()),
    "int8 + split": lambda rule: jl.stored(rule, params=jl.split(), mu=jl.int8(), nu=jl.int8()),
}


def compiled(placement, storage, topology="v5p:8x8x16"):
    config = jl.load(_CONFIG, _PLACEMENTS[placement])
    sizes = config.placement.mesh
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = Mesh(np.array(devices).reshape(*sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2)
    placed = placed_params(config, make_model(config.model), mesh)
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), placed)
    rule = _STORAGE[storage](optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-4)))
    rule = jl.zero(rule, mesh, "data", layers=config.placement.layers)
    state = jl.abstract_state(rule, params)
    places = jax.tree.map(lambda x: x.sharding, (params, state))

    def step(params, state, grads):
        return jl.apply(rule, grads, state, params)

    return jax.jit(step, donate_argnums=(0, 1), out_shardings=places).lower(params, state, params).compile()


def record_of(step):
    memory, found = step.memory_analysis(), jl.plan.collectives(step)
    return {
        "gib": {
            "arguments": memory.argument_size_in_bytes / _GIB,
            "temporaries": memory.temp_size_in_bytes / _GIB,
            "peak": memory.peak_memory_in_bytes / _GIB,
        },
        "collectives": {k: [found.count(k), found.bytes(k) / _GIB] for k in _KINDS if found.count(k)},
    }


def main():
    records = json.loads(_FILE.read_text()) if _FILE.exists() else {}
    for placement in _PLACEMENTS:
        for storage in _STORAGE:
            name = f"{placement}, {storage}"
            if not all(word in name for word in sys.argv[1:]):
                continue
            began = time.perf_counter()
            record = record_of(compiled(placement, storage))
            seconds = round(time.perf_counter() - began)
            print(name, json.dumps(record), f"{seconds} s", flush=True)
            records[name] = {**about("jax", "jaxlib", "libtpu"), "seconds": seconds, **record}
            _FILE.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
