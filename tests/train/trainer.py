"""One process of a training run on several: `train` as a cluster starts it.

python -m tests.train.trainer PROCESS COUNT PORT RUNS STEPS [HOW ...]
"""

import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

import jaxopt_large as jl
from jaxopt_large.train import RunError, loop, train

_LATE = 1.0  # seconds after the first process: it has made the folder by then


def main(process, count, port, runs, steps, *how):
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(process))
    settings = [f"placement.mesh={{data: {2 * int(count)}}}", f"train.steps={steps}", "distributed=auto"]
    settings += ["train.batch=32", "train.checkpoint_every=2", "model.hidden=[8]"]
    config = jl.load("configs/digits_mlp.yaml", settings)
    prepare = loop.prepare

    def prepared(config):
        mesh = prepare(config)
        time.sleep(_LATE * int(process))
        return mesh

    loop.prepare = prepared
    try:
        train(config, runs=runs, **dict.fromkeys(how, True))
    except RunError as error:
        sys.stdout.write(f"refused: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
