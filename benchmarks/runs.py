"""What training steps of configurations take on TPUs that are not there, by the TPU compiler's own account.

    python benchmarks/runs.py configs/gpt3_175b.yaml v5p:8x8x16   # in an environment of `make tpu`

The whole step is compiled, as `jaxopt-large train` would run it: loss, gradients in micro-batches, clipping,
the rule, new parameters; beside it stands what `jaxopt-large plan` says before. With --keep it is saved in
results/runs.json, by configuration and topology.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu"}

import jax
from _record import about

import jaxopt_large as jl
from jaxopt_large.train import plan_of
from jaxopt_large.train.compiled import compared, compiled_step

_FILE = Path(__file__).parent / "results" / "runs.json"
_GIB = 2**30


def record_of(found):
    gib = {
        row.what: {"planned": row.planned / _GIB, "compiled": row.compiled / _GIB}
        for row in found
        if row.what in ("arguments", "peak")
    }
    rest = {
        row.what: {"planned": row.planned / _GIB, "compiled": row.compiled / _GIB, "where": row.where}
        for row in found
        if row.what not in gib
    }
    return {"gib": gib, "collectives": rest}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("topology")
    parser.add_argument("--set", nargs="*", default=[], help="settings, as of jaxopt-large train")
    parser.add_argument("--keep", action="store_true", help="save the record")
    args = parser.parse_args()
    config = jl.load(args.config, args.set)
    plan = plan_of(config, chip=args.topology.split(":")[0])
    began = time.perf_counter()
    try:
        found = compared(plan, compiled_step(config, args.topology))
        record, told = record_of(found), str(found)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = str(error).splitlines()[0]
        record = {"refused": told, "gib": {"peak": {"planned": plan.device_bytes / _GIB}}}
    seconds = time.perf_counter() - began
    name = " ".join([f"{config.name} on {args.topology}", *args.set])
    print(f"{name}, compiled in {seconds:.0f} s; the plan {'fits' if plan.fits else 'does not fit'}:\n{told}")
    if args.keep:
        records = json.loads(_FILE.read_text()) if _FILE.exists() else {}
        records[name] = {**about("jax", "jaxlib", "libtpu"), "seconds": round(seconds), **record}
        _FILE.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
