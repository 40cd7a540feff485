"""Batches on their way to the devices, one ahead of the step; and the data set that they come from."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from .._processes import is_writer, on_any_later
from ..config import Config
from ..data import Batches, Dataset, load_data
from ._errors import RunError

_CACHE = ".data"  # beside the runs: what is found out about files once


def dataset_of(config: Config, runs: Path, tell: Callable[[str], None] = lambda text: None) -> Dataset:
    """The data set of a run. What takes long is done once, by the first process, and kept beside the runs.

    Args:
      config: of the run.
      runs: the folder of runs.
      tell: is told of what takes long.

    Raises:
      DataError: it cannot be used.
      RunError: on other processes, if the first one could not use it.
    """

    def load() -> Dataset:
        vocabulary = getattr(config.model, "vocabulary", None)
        kept: dict[str, Any] = {"cache": runs / _CACHE, "writes": is_writer(), "tell": tell}
        return load_data(config.data, config.seed, vocabulary=vocabulary, **kept)

    if jax.process_count() == 1:
        return load()
    found, failure = None, None
    if is_writer():
        try:
            found = load()
        except Exception as error:  # the others wait for this process
            failure = error
    if on_any_later(failure is not None, "data"):
        raise failure or RunError("train: the data was refused; the first process says why.")
    return found or load()


class Feed:
    """Takes batches in their order, and sends the next one to the devices while they work on the last.

    Args:
      batches: of host arrays.
      placed: sends one to the devices.
    """

    def __init__(self, batches: Batches, placed: Callable[[Any], Any]):
        self._batches, self._placed = batches, placed
        self._next: Any = None
        self._before: dict[str, Any] = {}  # the position before `_next`
        self.waited = 0.0  # seconds that the devices had nothing to do

    def take(self) -> Any:
        """The next batch, on the devices."""
        if self._next is None:
            self.send()
        batch, self._next = self._next, None
        return batch

    def send(self, working: Any = None) -> None:
        """Sends the next batch; one that is sent and not taken stays the next.

        Args:
          working: a result of the step that runs meanwhile: no time counts as waited before it is there.
        """
        if self._next is not None:
            return
        self._before, began = self._batches.position(), time.monotonic()
        batch = next(self._batches)
        if working is not None and working.is_ready():
            self.waited += time.monotonic() - began
        self._next = self._placed(batch)

    def position(self) -> dict[str, Any]:
        """From where the next batch that is taken is read."""
        return self._batches.position() if self._next is None else self._before

    def go_to(self, position: dict[str, Any]) -> None:
        """Goes on from a position."""
        self._next = None
        self._batches.go_to(position)
