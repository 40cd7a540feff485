"""What a run shows while it goes: a bar in a terminal, a line every ten seconds elsewhere."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from ..config import Config
from ..data import Dataset

_PLAIN_SECONDS = 10.0  # between two lines when there is no terminal
_SMOOTHING = 0.9  # of the time per step
_WAITS = 0.05  # share of the time that is worth a word


class Progress:
    """A context in which a run reports its steps."""

    def __init__(self, console: Console, config: Config, dataset: Dataset, done: int):
        self._console, self._steps = console, config.train.steps
        self._tokens = config.train.batch * dataset.tokens_per_example
        self._unit = "tok/s" if dataset.tokens_per_example > 1 else "ex/s"
        self._loss_unit = f"nats/{dataset.unit}"
        self._done, self._last = done, time.monotonic()
        self._seconds: float | None = None  # per step, smoothed; the first step compiles and does not count
        self._waited = 0.0
        self._waits = 0.0  # the share of the time for which devices wait for data, smoothed
        self._printed = time.monotonic()
        self._validation: float | None = None
        self._status = Text("compiling ...", style="dim")
        self._bar = Bar(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
            console=console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=self._steps, completed=done, eta="-:--")
        self._live = Live(console=console, refresh_per_second=4, transient=True, get_renderable=self._render)

    def __enter__(self) -> "Progress":
        if self._console.is_terminal:
            self._live.start()
        elif self._done < self._steps:
            self._console.print("compiling ...")
        return self

    def __exit__(self, *_: Any) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def step(self, step: int, values: dict[str, Any], waited: float = 0.0) -> float:
        """Reports a step; returns tokens (or examples) per second.

        Args:
          step: its number.
          values: of it.
          waited: seconds of the run for which devices waited for data.
        """
        now = time.monotonic()
        passed, self._last = (now - self._last) / max(1, step - self._done), now
        first, self._done = self._seconds is None, step
        if passed > 0 and not first:
            share = min(1.0, (waited - self._waited) / passed)
            self._waits = _SMOOTHING * self._waits + (1 - _SMOOTHING) * share
        if first:
            self._seconds = 0.0
        else:
            self._seconds = (
                passed if not self._seconds else _SMOOTHING * self._seconds + (1 - _SMOOTHING) * passed
            )
        self._waited = waited
        speed = round(self._tokens / self._seconds, 1) if self._seconds else 0.0
        eta = _clock((self._steps - step) * self._seconds) if self._seconds else "-:--"
        line = self._line(values, speed)
        if self._console.is_terminal:
            self._status = Text(line, no_wrap=True, overflow="ellipsis")
            self._bar.update(self._task, completed=step, eta=eta)
        elif now - self._printed >= _PLAIN_SECONDS or step == self._steps:
            self._printed = now
            self._console.print(
                f"step {step}/{self._steps}  ETA {eta}  {line}", soft_wrap=True, highlight=False
            )
        return speed

    def evaluated(self, step: int, means: dict[str, float]) -> None:
        """Reports a validation; its time does not count as a step's."""
        self._last = time.monotonic()
        self._validation = means["validation_loss"]
        accuracy = means.get("validation_accuracy")
        right = "" if accuracy is None else f"  accuracy {accuracy:.1%}"
        spent = f"  epsilon {means['epsilon']:.3g}" if "epsilon" in means else ""
        text = f"step {step:>6}  validation loss {self._validation:.4f} {self._loss_unit}{right}{spent}"
        self._console.print(text, highlight=False)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The time inside does not count as a step's."""
        yield
        self._last = time.monotonic()

    def _line(self, values: dict[str, Any], speed: float) -> str:
        parts = [
            f"loss {values['loss']:.3f}",
            f"{_short(speed)} {self._unit}",
            f"lr {values['learning_rate']:.1e}",
            f"|g| {values['gradient_norm']:.2f}",
            f"skipped {values['skipped_steps']}",
            memory(),
        ]
        if self._waits >= _WAITS:
            parts.insert(2, f"waits for data {self._waits:.0%}")
        return "  ".join(parts)

    def _render(self) -> Group:
        return Group(self._bar, self._status)


def memory() -> str:
    """Memory in use on the first device, or by this process where devices do not count it."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        return f"device {stats['bytes_in_use'] / 2**30:.2f} GiB"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"host {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
