"""One of the processes that read a run's batches: each its own rows; the first writes all of them down.

python -m tests.train.reader PROCESS COUNT PORT FOLDER
"""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.experimental import multihost_utils

import jaxopt_large as jl
from jaxopt_large.data import Batches
from jaxopt_large.models import make_model
from jaxopt_large.train.devices import prepare
from jaxopt_large.train.execution import make_execution
from jaxopt_large.train.feed import Feed, dataset_of

_DEVICES = 6


def main(process, count, port, folder):
    jax.config.update("jax_num_cpu_devices", _DEVICES // int(count))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(process))
    settings = [
        "model={kind: transformer, vocabulary: 260, layers: 1, width: 16, heads: 2}",
        f"data={{kind: text, path: {folder}/text{process}, context: 32, validation_windows: 4, pack: true, end_of_text: 256}}",
        "train={steps: 4, batch: 24, accumulate: 2}",
        f"placement={{mesh: {{data: {_DEVICES}}}}}",
        "distributed=auto",
    ]
    config = jl.load("configs/digits_mlp.yaml", settings)
    mesh = prepare(config)
    execution = make_execution(config, make_model(config.model), jl.build(config, mesh=mesh), mesh)
    dataset = dataset_of(config, Path(folder) / f"runs{process}")
    feed = Feed(Batches(dataset, config.train.batch, config.seed, rows=execution.rows), execution.placed)
    taken = [multihost_utils.process_allgather(feed.take(), tiled=True) for _ in range(4)]
    rows = multihost_utils.process_allgather(np.asarray([len(execution.rows or range(24))]), tiled=True)
    if int(process) == 0:
        whole = {name: np.stack([np.asarray(batch[name]) for batch in taken]) for name in taken[0]}
        np.savez(Path(folder) / "batches.npz", rows=rows, **whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
