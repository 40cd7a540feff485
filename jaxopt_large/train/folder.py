"""A run's folder: configuration, metrics, checkpoints, summary."""

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from .._errors import message
from ..checkpoint import CheckpointError, read_metadata, restore, save
from ._errors import RunError

_STEP = re.compile(r"step_(\d+)$")


class RunFolder:
    """`runs/<name>/` and what is in it. Only the process that writes changes anything but checkpoints."""

    def __init__(self, path: Path, *, keep: int, writes: bool = True):
        self.path, self._keep, self._writes = path, keep, writes
        self._metrics = None

    def create(self, *, resume: bool, overwrite: bool) -> None:
        """Makes the folder, or takes up one that is there.

        Raises:
          RunError: a run is there, and neither `resume` nor `overwrite` was asked for.
        """
        if self.path.exists() and any(self.path.iterdir()) and not resume:
            if not overwrite:
                raise RunError(
                    message(
                        "train",
                        f"a run is there already, {str(self.path)!r}",
                        do="Go on with --resume, start again with --overwrite, or take another name",
                    )
                )
            if self._writes:
                shutil.rmtree(self.path)
        if self._writes:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for leftover in self.checkpoints.glob(".*"):  # of a save or a removal that was killed
                shutil.rmtree(leftover)

    @property
    def checkpoints(self) -> Path:
        """Where they are kept."""
        return self.path / "checkpoints"

    # --- checkpoints

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, oldest first."""
        found = [_STEP.match(f.name) for f in self.checkpoints.iterdir()] if self.checkpoints.is_dir() else []
        return sorted(int(m.group(1)) for m in found if m)

    def save(self, step: int, tree: Any, metadata: dict[str, Any]) -> None:
        """Writes a checkpoint, unless that step has one, and removes all but the newest few."""
        if step not in self.steps():
            save(self._checkpoint(step), tree, metadata=metadata)
        for old in self.steps()[: -self._keep] if self._writes else []:
            aside = self.checkpoints / f".step_{old:08d}.old"  # out of sight first: removal is not atomic
            self._checkpoint(old).rename(aside)
            shutil.rmtree(aside)

    def load(self, like: Any, *, fall_back: bool) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint and its metadata; None where there is none.

        With `fall_back`, one that is damaged is passed over for the next older one.

        Raises:
          CheckpointError: the newest is damaged, and falling back was not asked for, or all are.
          RunError: it belongs to another model.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self._checkpoint(step)
            try:
                return restore(path, like), read_metadata(path)
            except CheckpointError as error:
                if fall_back and step != steps[0]:
                    continue
                hint = "" if fall_back or step == steps[0] else "\nOlder ones are there: add --fall-back."
                raise CheckpointError(f"{error}{hint}") from error
            except ValueError as error:
                raise RunError(str(error)) from error
        return None

    def _checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:08d}"

    # --- metrics

    def open_metrics(self, last_step: int) -> None:
        """Opens metrics.jsonl for appending, without what was written after `last_step`."""
        if not self._writes:
            return
        file = self.path / "metrics.jsonl"
        kept = [line for line in self.metrics() if line["step"] <= last_step]
        file.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._metrics = file.open("a", buffering=1)

    def log(self, **values: Any) -> None:
        """Appends one line; numbers that are not finite become null."""
        if self._metrics is not None:
            clean = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
            }
            self._metrics.write(json.dumps(clean) + "\n")

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

    def close(self) -> None:
        """Closes metrics.jsonl."""
        if self._metrics is not None:
            self._metrics.close()

    # --- whole files

    def write(self, name: str, text: str) -> None:
        """Writes a file in one rename."""
        if self._writes:
            aside = self.path / f".{name}.part"
            aside.write_text(text)
            os.replace(aside, self.path / name)
