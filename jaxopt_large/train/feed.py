"""Batches on their way to the devices, one ahead of the step; and the data set that they come from."""

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .._errors import message
from .._processes import is_writer, on_any_later
from ..config import Config
from ..data import Batch, Batches, Dataset, PoissonBatches, load_data
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
        kept: dict[str, Any] = {"cache": runs / _CACHE, "tell": tell}
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
    try:
        found = found or load()
    except Exception as error:
        failure = error
    _check_same(found, failure)
    return found  # type: ignore[return-value]


def _check_same(found: Dataset | None, failure: Exception | None) -> None:
    """Raises unless all processes have found the same data."""
    from jax.experimental import multihost_utils

    own = hashlib.sha256(repr(found and (found.size, found.facts["sha256"])).encode()).digest()
    each = multihost_utils.process_allgather(np.frombuffer(own, np.uint8))
    others = [n for n, digest in enumerate(each) if not np.array_equal(digest, each[0])]
    if failure is not None:
        raise failure
    if others:
        wrong = f"processes have found other data than the first, got it on {', '.join(map(str, others))}"
        raise RunError(message("train", wrong, do="Give all the same files; a folder that all see will do"))


class Feed:
    """Takes batches in their order; the next one is read and sent to the devices while they work on the last.

    Args:
      batches: of host arrays.
      placed: sends one to the devices.

    Attributes:
      waited: seconds for which the devices had nothing to do, because a batch was late.
    """

    def __init__(self, batches: Batches | PoissonBatches, placed: Callable[[Any], Any]):
        self._batches, self._placed = batches, placed
        self._reader = ThreadPoolExecutor(1, "reading")
        self._next: Future[Any] | None = None
        self._before: dict[str, Any] = {}  # the position before `_next`
        self.waited = 0.0

    def send(self) -> None:
        """Begins to send the next batch; one that was sent and not taken stays the next."""
        if self._next is None:
            self._before = self._batches.position()
            self._next = self._reader.submit(lambda: self._placed(next(self._batches)))

    def take(self, working: Any = None) -> Any:
        """The next batch, on the devices.

        Args:
          working: a result of the step before: no time counts as waited before it is there.

        Raises:
          DataError: there is none: a file has changed, or an id is not in the vocabulary.
        """
        self.send()
        sent: Any = self._next
        if working is not None and not sent.done():
            jax.block_until_ready(working)
            began = time.monotonic()
            wait([sent])
            self.waited += time.monotonic() - began
        batch = sent.result()
        self._next = None
        return batch

    def close(self) -> None:
        """Reads no more."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    def position(self) -> dict[str, Any]:
        """From where the next batch that is taken is read."""
        return self._batches.position() if self._next is None else self._before

    def go_to(self, position: dict[str, Any]) -> None:
        """Goes on from a position."""
        if self._next is not None:
            wait([self._next])
        self._next = None
        self._batches.go_to(position)


def validation_batches(dataset: Dataset, config: Config) -> list[Batch]:
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
