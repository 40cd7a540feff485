"""The training loop."""

import dataclasses
import json
import platform
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from .._errors import message
from ..config import Config, to_yaml
from ..config._build import build, learning_rate
from ..data import load_data
from ..data._dataset import Batch, Batches, Dataset
from ..models import make_model
from ._errors import RunError
from .devices import describe, prepare
from .execution import Execution, make_execution
from .folder import RunFolder
from .progress import Progress
from .report import Card, draw_curves
from .step import watched


@dataclasses.dataclass
class _Position:
    """How far a run has come: what a checkpoint holds beside arrays."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best: float | None = None
    last: float | None = None
    data: dict[str, Any] | None = None


def train(
    config: Config,
    *,
    runs: str | Path = "runs",
    resume: bool = False,
    overwrite: bool = False,
    fall_back: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Runs a training run from start to end, or goes on with one.

    Args:
      config: from `load`.
      runs: the folder of runs; this one's is `runs/<name>`.
      resume: go on from the newest checkpoint, bit for bit on the same number of devices; from the
        start where there is none.
      overwrite: remove a run of the same name first.
      fall_back: when resuming, pass over damaged checkpoints.
      console: where to show progress; standard output by default.

    Returns:
      The summary that stands in `summary.json`; `interrupted` is set when a signal ended the run.

    Raises:
      RunError: the run cannot start.
      CheckpointError: the checkpoint to resume from is damaged.
    """
    mesh = prepare(config)
    main = jax.process_index() == 0
    console = console or Console(quiet=not main)
    folder = RunFolder(Path(runs) / config.name, keep=config.train.keep, writes=main)
    dataset = load_data(config.data, config.seed)
    model = make_model(config.model)
    execution = make_execution(config, model, build(config, mesh=mesh, around=watched), mesh)
    folder.create(resume=resume, overwrite=overwrite)
    run = _Run(config, folder, dataset, execution, console, mesh)
    return run.go(resume=resume, fall_back=fall_back)


class _Run:
    """The state of a run between its steps."""

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        dataset: Dataset,
        execution: Execution,
        console: Console,
        mesh: Mesh,
    ):
        self.config, self.folder, self.dataset = config, folder, dataset
        self.execution, self.console, self.mesh = execution, console, mesh
        self.at = _Position()
        self.batches = Batches(dataset, config.train.batch, config.seed)
        self.validation = _validation_batches(dataset, config)
        self.rate = learning_rate(config)
        # Two programs in flight on simulated devices can block each other's threads for good.
        self.one_at_a_time = mesh.devices.flat[0].platform == "cpu" and mesh.size > 1

    def go(self, *, resume: bool, fall_back: bool) -> dict[str, Any]:
        self.params, self.state = self.execution.init(jax.random.key(self.config.seed))
        if resume:
            self._take_up(fall_back)
        self.folder.write("config.yaml", to_yaml(self.config))
        self.folder.open_metrics(self.at.step)
        whole, most = self.execution.state_bytes(self.state)
        parameters = sum(x.size for x in jax.tree.leaves(self.params)) // self._copies()
        card = Card(self.config, self.dataset, parameters, whole, most, describe(self.mesh), self.folder.path)
        card.show_start(self.console, self.at.step)
        with (
            _stop_on_signal() as stop,
            Progress(self.console, self.config, self.dataset, self.at.step) as progress,
        ):
            self._loop(progress, stop)
        summary = self._summary(whole, most, interrupted=self.at.step < self.config.train.steps)
        self.folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
        self.folder.close()
        card.show_end(self.console, summary, self.folder.metrics())
        if jax.process_index() == 0:
            draw_curves(
                self.folder.path / "curves.png",
                self.folder.metrics(),
                self.config,
                self.dataset,
                self.console,
            )
        return summary

    def _loop(self, progress: Progress, stop: threading.Event) -> None:
        train, began, seconds = self.config.train, time.monotonic(), self.at.seconds
        waiting = None
        while self.at.step < train.steps and not stop.is_set():
            batch = next(self.batches)
            self.params, self.state, metrics = self.execution.step(self.params, self.state, batch)
            self.at.step += 1
            self.at.tokens += train.batch * self.dataset.tokens_per_example
            if waiting is not None:  # one step behind, so that the device never waits for the host
                self._report(progress, *waiting)
            waiting = (self.at.step, metrics)
            pause = self.at.step % train.eval_every == 0 or self.at.step == train.steps
            if self.one_at_a_time:
                jax.block_until_ready((self.params, self.state))
            if self.one_at_a_time or pause:
                self._report(progress, *waiting)
                waiting = None
            if pause:
                self._evaluate(progress)
            self.at.seconds = seconds + time.monotonic() - began
            if self.at.step % train.checkpoint_every == 0 or self.at.step == train.steps:
                self._save(progress)
        if waiting is not None:
            self._report(progress, *waiting)
        if self.at.step < train.steps:
            self._save(progress)

    def _report(self, progress: Progress, step: int, metrics: Any) -> None:
        values = {
            "loss": float(metrics.loss),
            "gradient_norm": float(metrics.norm),
            "skipped_steps": int(metrics.skipped),
        }
        values["learning_rate"] = float(self.rate(np.int32(step - 1 - values["skipped_steps"])))
        speed = progress.step(step, values)
        if step % self.config.train.log_every == 0:
            self.folder.log(step=step, **values, tokens_per_second=speed)

    def _evaluate(self, progress: Progress) -> None:
        results = [jax.device_get(self.execution.evaluate(self.params, b)) for b in self.validation]
        means = {name: float(np.mean([r[name] for r in results])) for name in results[0]}
        self.at.last = means["validation_loss"]
        self.at.best = self.at.last if self.at.best is None else min(self.at.best, self.at.last)
        self.folder.log(step=self.at.step, **means)
        progress.evaluated(self.at.step, means)

    def _save(self, progress: Progress) -> None:
        self.at.data = self.batches.position()
        metadata = {
            "position": dataclasses.asdict(self.at),
            "data": self.dataset.facts,
            "devices": self.mesh.size,
        }
        with progress.saving():
            self.folder.save(self.at.step, self.execution.saved(self.params, self.state), metadata)

    def _take_up(self, fall_back: bool) -> None:
        like = self.execution.saved(self.params, self.state)
        found = self.folder.load(like, fall_back=fall_back)
        if found is None:
            self.console.print("Nothing to resume from: starting at step 0.")
            return
        tree, metadata = found
        if metadata["data"].get("sha256") != self.dataset.facts["sha256"]:
            raise RunError(
                message(
                    "train",
                    f"the data has changed since the checkpoint, got SHA-256 {self.dataset.facts['sha256']}",
                    allowed=f"it was {metadata['data'].get('sha256')}",
                    do="Start a run of another name",
                )
            )
        self.params, self.state = self.execution.loaded(tree, self.params, self.state)
        self.at = _Position(**metadata["position"])
        self.batches.go_to(metadata["position"]["data"])

    def _summary(self, whole: int, most: int, *, interrupted: bool) -> dict[str, Any]:
        skipped = [m["skipped_steps"] for m in self.folder.metrics() if "skipped_steps" in m]
        names = ("jaxopt_large", "jax", "jaxlib", "optax", "orbax-checkpoint", "grain", "numpy")
        return {
            "final_validation_loss": self.at.last,
            "best_validation_loss": self.at.best,
            "steps": self.at.step,
            "interrupted": interrupted,
            "wall_seconds": round(self.at.seconds, 3),
            "tokens_per_second": round(self.at.tokens / self.at.seconds, 1) if self.at.seconds else 0.0,
            "state_bytes_unsharded": whole,
            "state_bytes_per_device": most,
            "devices": self.mesh.size,
            "skipped_steps": skipped[-1] if skipped else 0,
            "data": self.dataset.facts,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        }

    def _copies(self) -> int:
        """Under pmap every parameter has a leading axis of copies."""
        return self.mesh.size if self.config.placement.parallel == "pmap" else 1


def _validation_batches(dataset: Dataset, config: Config) -> list[Batch]:
    """Batches of one size that every device can share; what does not fill one is left out."""
    rows = len(next(iter(dataset.validation.values())))
    devices = config.placement.mesh[config.placement.data_axis]
    size = min(config.train.batch, rows) // devices * devices
    if size == 0:
        raise RunError(f"train: {rows} validation examples cannot be shared by {devices} devices.")
    return [
        {name: x[start : start + size] for name, x in dataset.validation.items()}
        for start in range(0, rows - size + 1, size)
    ]


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Sets an event on Ctrl-C or SIGTERM; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        del frame
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
