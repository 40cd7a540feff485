"""A run's folder: configurations, metrics, checkpoints, summary."""

import json
import math
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from .._errors import message
from .._processes import on_any, on_any_later
from .._writing import not_written
from ..checkpoint import (
    CheckpointError,
    NotWrittenError,
    RestoreReport,
    Saving,
    difference,
    read_metadata,
    restore,
    restore_changed,
    save,
)
from ..config import Checkpoint
from ._errors import RunError, RunWriteError
from .keeping import kept
from .lock import NAME, Lock

_STEP = re.compile(r"step_(\d+)$")
_CONFIG = "config.yaml"
_FILES = "data.json"  # what the run's data was
_TURNS = 10  # steps between two questions to other processes


class Loaded(NamedTuple):
    """What a checkpoint holds; with a report where only what is common was read."""

    step: int
    tree: Any
    metadata: dict[str, Any]
    report: RestoreReport | None


class OtherTreeError(RunError):
    """A checkpoint holds the arrays of another tree; the report says what both have."""

    def __init__(self, text: str, step: int, metadata: dict[str, Any], report: RestoreReport):
        super().__init__(text)
        self.step, self.metadata, self.report = step, metadata, report


class RunFolder:
    """`runs/<name>/` and what is in it. Only the process that writes changes anything but checkpoints."""

    def __init__(self, path: Path, *, keep: int, writes: bool = True, policy: Checkpoint | None = None):
        self.path, self._keep, self._writes = path, keep, writes
        self._policy = policy or Checkpoint(background=False)
        self._saving: Saving | None = None
        self._turns = 0
        self._metadata: dict[int, dict[str, Any]] = {}
        self._metrics: Any = None

    @contextmanager
    def taken(self, *, resume: bool, overwrite: bool) -> Iterator[str]:
        """The folder, for this run alone; it is made, and is gone again if nothing comes into it.

        Yields:
          What is to be said to the user.

        Raises:
          RunError: another process runs it; or a run is there, and neither `resume` nor `overwrite` was
            asked for. All processes of this run are refused together.
        """
        lock, note, failure = Lock(self.path), "", None
        made = [f for f in (self.path, *self.path.parents) if not f.exists()] if self._writes else []
        try:
            if self._writes:
                try:
                    note = self._take(lock, resume or overwrite)
                except RunError as error:
                    failure = error
            if on_any(failure is not None):
                raise failure or RunError("train: the run was refused; its first process says why.")
            yield note
        finally:
            if self._saving is not None:  # something else has ended the run
                self._saving.wait_for_end()
            self._close_metrics()
            lock.release()
            for folder in made:
                with suppress(OSError):  # something is in it
                    folder.rmdir()

    def _take(self, lock: Lock, may_be_there: bool) -> str:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunWriteError(not_written("train", self.path, error)) from None
        note = lock.take()
        if not may_be_there and any(f.is_file() and f.name != NAME for f in self.path.rglob("*")):
            raise RunError(
                message(
                    "train",
                    f"a run is there already, {str(self.path)!r}",
                    do="Go on with --resume, start again with --overwrite, or take another name",
                )
            )
        return note

    def begin(self, *, anew: bool) -> None:
        """Removes what a run that starts anew replaces, and what one that was killed has left."""
        if not self._writes:
            return
        with self._refusals(self.path):
            for old in self.path.iterdir() if anew else []:
                if old.name != NAME:
                    shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for leftover in self.checkpoints.glob(".*"):  # of a save or a removal that was killed
                shutil.rmtree(leftover)

    @property
    def checkpoints(self) -> Path:
        """Where they are kept."""
        return self.path / "checkpoints"

    @property
    def resume_command(self) -> str:
        """What goes on with this run."""
        runs = [] if str(self.path.parent) == "runs" else ["--runs", str(self.path.parent)]
        return shlex.join(["jaxopt-large", "train", str(self.path / _CONFIG), *runs, "--resume"])

    # --- checkpoints

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        found = [_STEP.match(f.name) for f in self.checkpoints.iterdir()] if self.checkpoints.is_dir() else []
        return sorted(int(m.group(1)) for m in found if m)

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint, or begins to, unless that step has one.

        Raises:
          RunWriteError: it cannot be written, or that before it; nothing of it is left.
        """
        self.settle()
        if step in self.steps():
            return
        with self._not_saved():
            if self._policy.background:
                room = self._policy.host_bytes
                path = self._checkpoint(step)
                self._saving = save(path, tree, metadata=metadata, wait=False, host_bytes=room)
            else:
                save(self._checkpoint(step), tree, metadata=metadata)
                self._remove_others()

    def settle(self, *, wait: bool = True) -> None:
        """Sees to what is written in the background, if that is over, and removes what need not stay then.

        Args:
          wait: until it is over.

        Raises:
          RunWriteError: it could not be written; nothing of it is left.
        """
        saving = self._saving
        if saving is None:
            return
        if not wait:
            self._turns += 1
            if jax.process_count() > 1 and self._turns % _TURNS:  # asking the others takes time
                return
            if on_any_later(not saving.done, "settled"):
                return
        self._saving = None
        with self._not_saved():
            saving.wait()
        self._remove_others()

    @contextmanager
    def _not_saved(self) -> Iterator[None]:
        try:
            yield
        except NotWrittenError as error:
            raise RunWriteError(f"{error} {self.safe()}") from error.__cause__

    def _remove_others(self) -> None:
        if not self._writes:
            return
        steps = self.steps()
        stay = kept(steps, self._keep, self._policy, self._told)
        for old in (step for step in steps if step not in stay):
            aside = self.checkpoints / f".step_{old:08d}.old"  # out of sight first: removal is not atomic
            self._checkpoint(old).rename(aside)
            shutil.rmtree(aside)

    def _told(self, step: int) -> dict[str, Any]:
        """The metadata of a step's checkpoint; of one that is damaged none."""
        if step not in self._metadata:
            try:
                self._metadata[step] = read_metadata(self._checkpoint(step))
            except CheckpointError:
                self._metadata[step] = {}
        return self._metadata[step]

    def load(self, like: Any, *, fall_back: bool, changed: bool) -> Loaded | None:
        """The newest checkpoint; None where there is none.

        With `fall_back`, one that is damaged is passed over for the next older one. With `changed`, what it
        and `like` have in common is read.

        Raises:
          CheckpointError: the newest is damaged, and falling back was not asked for, or all are.
          OtherTreeError: it holds other arrays than `like`.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self._checkpoint(step)
            try:
                metadata = read_metadata(path)
                try:
                    found = restore_changed(path, like) if changed else (restore(path, like), None)
                except CheckpointError:
                    raise
                except ValueError as error:
                    raise OtherTreeError(str(error), step, metadata, difference(path, like)) from error
                return Loaded(step, found[0], metadata, found[1])
            except CheckpointError as error:
                if fall_back and step != steps[0]:
                    continue
                hint = "" if fall_back or step == steps[0] else "\nOlder ones are there: add --fall-back."
                raise CheckpointError(f"{error}{hint}") from error
        return None

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}"

    def safe(self) -> str:
        """What a run that cannot write can go on with."""
        steps = self.steps()
        if not steps:
            return "No step is saved yet."
        return f"Step {steps[-1]} is safe: go on with {self.resume_command}"

    # --- configurations

    def configuration(self) -> str:
        """The text of the one that the folder has; empty where there is none."""
        file = self.path / _CONFIG
        return file.read_text() if file.is_file() else ""

    def keep_configuration(self, text: str, step: int) -> None:
        """Writes the configuration of the run from `step` on; one that differs stays as config.1.yaml ..."""
        before = self.configuration()
        if before and before != text:
            number = 1 + sum(1 for _ in self.path.glob("config.*.yaml"))
            self.write(f"config.{number}.yaml", f"# of this run until step {step}\n{before}")
        self.write(_CONFIG, text)

    def newest(self) -> dict[str, Any] | None:
        """The metadata of the newest checkpoint that can be read; None where there is none."""
        return next((told for step in reversed(self.steps()) if (told := self._told(step))), None)

    # --- data

    def keep_files(self, files: Mapping[str, tuple[int, str]]) -> None:
        """Writes the sizes and hashes of the files that the run reads, to know later which have changed."""
        if files and self.files() != files:
            self.write(_FILES, json.dumps(dict(files)) + "\n")

    def files(self) -> dict[str, tuple[int, str]]:
        """What was kept of them; empty if nothing was."""
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads((self.path / _FILES).read_bytes())
            return {name: tuple(known) for name, known in found.items()}
        return {}

    # --- metrics

    def open_metrics(self, last_step: int) -> None:
        """Opens metrics.jsonl for appending, without what was written after `last_step`."""
        if not self._writes:
            return
        kept = [line for line in self.metrics() if line["step"] <= last_step]
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))
        with self._refusals(self.path / "metrics.jsonl"):
            # no buffer: what the disk does not take would be tried again at the end
            self._metrics = (self.path / "metrics.jsonl").open("ab", buffering=0)

    def log(self, **values: Any) -> None:
        """Appends one line; numbers that are not finite become null."""
        if self._metrics is None:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        left = (json.dumps(clean) + "\n").encode()
        with self._refusals(self.path / "metrics.jsonl"):
            while left:
                left = left[self._metrics.write(left) :]

    def metrics(self) -> list[dict[str, Any]]:
        """All lines; one that a kill has torn is left out."""
        file = self.path / "metrics.jsonl"
        lines = []
        for text in file.read_text().splitlines() if file.is_file() else []:
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    # --- whole files

    def write(self, name: str, content: str | bytes) -> None:
        """Writes a file in one rename.

        Raises:
          RunWriteError: it cannot be written; the one before is whole.
        """
        if not self._writes:
            return
        aside = self.path / f".{name}.part"
        data = content.encode() if isinstance(content, str) else content
        with self._refusals(self.path / name, len(data)):
            try:
                aside.write_bytes(data)
                os.replace(aside, self.path / name)
            except OSError:
                aside.unlink(missing_ok=True)
                raise

    @contextmanager
    def _refusals(self, path: Path, needed: int = 0) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            text = not_written("train", path, error, needed=needed)
            raise RunWriteError(f"{text} {self.safe()}") from None
