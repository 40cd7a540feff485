"""The training loop."""

import dataclasses
import functools
import json
import platform
import threading
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from .._errors import message
from ..checkpoint import local
from ..config import Config, adjusted, build, learning_rate, settings, to_yaml
from ..data import Batches, DataError, Dataset
from ..gradient_norm import watched
from ..models import Model, make_model
from ._errors import RunError
from .devices import check_fits, check_trains, describe, prepare
from .execution import Execution, make_execution
from .feed import Feed, dataset_of, validation_batches
from .folder import RunFolder
from .private import Private, private_of
from .progress import Progress
from .refusals import refusals
from .report import Card, draw_curves
from .resume import resumed
from .signals import stop_on_signal

_TIMES_BACK = 3  # that a run goes back before it ends


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
    changed: bool = False,
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
      changed: when resuming with a changed configuration, go on with the arrays that it and the checkpoint
        have in common; the others start afresh.
      console: where to show progress; standard output by default.

    Returns:
      The summary that stands in `summary.json`; `interrupted` is set when a signal ended the run.

    Raises:
      RunError: the run cannot start, another process runs it, or a file cannot be written.
      CheckpointError: the checkpoint to resume from is damaged.
    """
    if changed and not resume:
        raise RunError(message("train", "changed goes with resume", do="Add --resume"))
    model = make_model(config.model)
    check_trains(config, model)
    if config.train.checkpoint.keep_best and not _has(config.train.checkpoint.metric, model):
        wrong = f"train.checkpoint.metric is not known of this model, got {config.train.checkpoint.metric!r}"
        raise RunError(message("train", wrong, allowed="validation_loss"))
    mesh = prepare(config)
    check_fits(model.abstract())
    main = jax.process_index() == 0
    console = console or Console(quiet=not main)
    with refusals():
        local("train", runs)
    policy = config.train.checkpoint
    folder = RunFolder(Path(runs) / config.name, keep=config.train.keep, writes=main, policy=policy)
    with folder.taken(resume=resume, overwrite=overwrite) as note:
        if note:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        tell = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
        dataset = dataset_of(config, Path(runs), tell)
        with refusals():
            private = private_of(config, dataset, folder.newest() if resume else None)
            rule = build(config, mesh=mesh, around=watched)
            execution = make_execution(config, model, rule, mesh, private)
            run = _Run(config, folder, dataset, execution, console, mesh, private)
        folder.begin(anew=not resume)
        if resume:
            run.take_up(fall_back=fall_back, changed=changed)
        with refusals(of=(MemoryError, jax.errors.JaxRuntimeError)):
            return run.go()


def _has(metric: str, model: Model) -> bool:
    return metric != "validation_accuracy" or model.accuracy is not None


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
        private: Private | None,
    ):
        self.private = private
        self.stop_at = config.train.steps if private is None else private.stop_at
        self.config, self.folder, self.dataset = config, folder, dataset
        self.execution, self.console, self.mesh = execution, console, mesh
        self.at = _Position()
        self.evaluated: tuple[int, dict[str, float]] = (
            0,
            {},
        )  # the step of the last evaluation, and its means
        self.params, self.state = execution.init(jax.random.key(config.seed))
        batches = Batches(dataset, config.train.batch, config.seed, rows=execution.rows)
        drawn = batches if private is None else private.batches(execution.rows)
        self.feed = Feed(drawn, execution.placed)
        self.went_back = 0  # times
        self.waited = 0.0  # of the feed's seconds, those that were logged
        self.validation = validation_batches(dataset, config)
        self.rate = learning_rate(config)
        # Two programs in flight on simulated devices can block each other's threads for good.
        self.one_at_a_time = mesh.devices.flat[0].platform == "cpu" and mesh.size > 1

    def go(self) -> dict[str, Any]:
        self.folder.keep_configuration(to_yaml(self.config), self.at.step)
        self.folder.keep_files(self.dataset.files)
        self.folder.open_metrics(self.at.step)
        whole, most = self.execution.state_bytes(self.state)
        parameters = sum(x.size for x in jax.tree.leaves(self.params)) // self._copies()
        card = Card(self.config, self.dataset, parameters, whole, most, describe(self.mesh), self.folder)
        if self.private is not None:
            self.private.check_budget(self.at.step)
            card.privacy = self.private.told
        card.show_start(self.console, self.at.step)
        with (
            stop_on_signal() as stop,
            Progress(self.console, self.config, self.dataset, self.at.step) as progress,
        ):
            try:
                self._loop(progress, stop)
            finally:
                self.feed.close()
        summary = self._summary(whole, most, interrupted=self.at.step < self.stop_at)
        self.folder.write("summary.json", json.dumps(summary, indent=1) + "\n")
        card.show_end(self.console, summary, self.folder.metrics())
        if jax.process_index() == 0:
            picture = draw_curves(self.folder.metrics(), self.config, self.dataset, self.console)
            if picture:
                self.folder.write("curves.png", picture)
        return summary

    def _loop(self, progress: Progress, stop: threading.Event) -> None:
        train, began, seconds = self.config.train, time.monotonic(), self.at.seconds
        waiting, working = None, None
        while self.at.step < self.stop_at and not stop.is_set():
            batch = self._taken(progress, waiting, working)
            with refusals() if working is None else nullcontext():  # as it is traced a rule may refuse
                self.params, self.state, metrics = self.execution.step(self.params, self.state, batch)
            self.at.step += 1
            self.at.tokens += train.batch * self.dataset.tokens_per_example
            working = metrics.loss
            if self.at.step < self.stop_at:
                self.feed.send()
            # one step behind, so that the device never waits for the host
            is_back = waiting is not None and self._report(progress, *waiting)
            waiting = None if is_back else (self.at.step, metrics)
            pause = self.at.step % train.eval_every == 0 or self.at.step == self.stop_at
            due = self.at.step % train.checkpoint_every == 0 or self.at.step == self.stop_at
            if self.one_at_a_time:
                jax.block_until_ready((self.params, self.state))
            self.folder.settle(wait=False)
            # nothing is saved that a guard has given up
            if (self.one_at_a_time or pause or due) and waiting is not None:
                self._report(progress, *waiting)
                waiting = None
            if pause:
                self._evaluate(progress)
            self.at.seconds = seconds + time.monotonic() - began
            if due:
                self._save(progress)
        if waiting is not None:
            self._report(progress, *waiting)
        if self.at.step < self.stop_at:
            self._save(progress)
        with progress.saving():
            self.folder.settle()

    def _taken(self, progress: Progress, waiting: Any, working: Any) -> Any:
        """The next batch; if there is none any more, the step before it is told and saved first."""
        try:
            return self.feed.take(working)
        except DataError:
            if waiting is not None:
                self._report(progress, *waiting)
            if self.at.step and jax.process_count() == 1:  # several do not fail together
                self._save(progress)
            raise

    def _report(self, progress: Progress, step: int, metrics: Any) -> bool:
        """Shows and logs a step; was it one that made the run go back?"""
        values = {
            "loss": float(metrics.loss),
            "gradient_norm": float(metrics.norm),
            "skipped_steps": int(metrics.skipped),
        }
        is_back = bool(metrics.given_up)
        if is_back:
            self._go_back(step)
        values["learning_rate"] = float(self.rate(np.int32(step - 1 - values["skipped_steps"])))
        speed = progress.step(step, values, self.feed.waited)
        if step % self.config.train.log_every == 0:
            waited, self.waited = self.feed.waited - self.waited, self.feed.waited
            wait = round(waited, 4)
            self.folder.log(step=step, **values, tokens_per_second=speed, data_wait_seconds=wait)
        return is_back

    def _go_back(self, step: int) -> None:
        """Takes back what a snapshot has, when a guard has given up.

        Raises:
          RunError: there is none, or it was taken back often enough.
        """
        self.went_back += 1
        if self.config.train.rollback is None or self.went_back > _TIMES_BACK:
            self.folder.settle()
            wrong = f"skip_spikes has given up, got too many steps in a row to leave out by step {step}"
            do = f"{self.folder.safe()} Lower the learning rate, or look at the data"
            raise RunError(message("train", wrong, do=do))
        self.params, self.state = self.execution.rolled_back(self.params, self.state)
        told = f"step {step:>6}  skip_spikes has given up: parameters and state are those of a snapshot again"
        self.console.print(told, highlight=False, soft_wrap=True)

    def _evaluate(self, progress: Progress) -> None:
        params = self.execution.averaged(self.params, self.state)
        results = [jax.device_get(self.execution.evaluate(params, b)) for b in self.validation]
        masked = "mask" in self.validation[0]
        weights = [b["mask"].sum() for b in self.validation] if masked else None
        means = {name: float(np.average([r[name] for r in results], weights=weights)) for name in results[0]}
        self.evaluated = self.at.step, means
        self.at.last = means["validation_loss"]
        self.at.best = self.at.last if self.at.best is None else min(self.at.best, self.at.last)
        spent = {} if self.private is None else {"epsilon": self.private.epsilon(self.at.step)}
        self.folder.log(step=self.at.step, **means, **spent)
        progress.evaluated(self.at.step, {**means, **spent})

    def _save(self, progress: Progress) -> None:
        self.at.data = self.feed.position()
        metadata = {
            "position": dataclasses.asdict(self.at),
            "metrics": self.evaluated[1] if self.evaluated[0] == self.at.step else {},
            "data": self.dataset.facts,
            "devices": self.mesh.size,
            "config": settings(self.config),
        }
        if self.private is not None:
            metadata["private"] = self.private.kept()
        with progress.saving():
            self.folder.save(self.at.step, self.execution.saved(self.params, self.state), metadata)

    def take_up(self, *, fall_back: bool, changed: bool) -> None:
        """Goes to where the newest checkpoint was written."""
        found = resumed(
            self.folder,
            self.execution.saved(self.params, self.state),
            self.config,
            self.dataset,
            self.console,
            fall_back=fall_back,
            changed=changed,
        )
        if found is not None:
            tree, position = found
            self.params, state = self.execution.loaded(tree, self.params, self.state)
            self.state = adjusted(state, self.config)
            self.at = _Position(**position)
            self.feed.go_to(position["data"])

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
            **({} if self.private is None else {"epsilon": self.private.epsilon(self.at.step)}),
            "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
        }

    def _copies(self) -> int:
        """Under pmap every parameter has a leading axis of copies."""
        return self.mesh.size if self.config.placement.parallel == "pmap" else 1
