"""The order of examples, which depends on a seed alone, and reading them ahead."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._dataset import Batch, Dataset

_THREADS = 4  # that wait for the disk, each for a batch
_AHEAD = 8  # batches that are read before they are asked for
_ENDLESS = 2**62


class Batches:
    """An endless, shuffled stream of training batches that can be left and taken up again.

    Every epoch has an order of its own: a permutation that is computed as it is needed and takes no memory.
    The position is a small dictionary for a checkpoint; it says nothing of who reads which rows.

    Args:
      dataset: of the examples.
      batch: examples in a batch, over all processes.
      seed: of the order.
      rows: those of each batch that this process reads, rising; all by default.
    """

    def __init__(self, dataset: Dataset, batch: int, seed: int, *, rows: Sequence[int] | None = None):
        import grain  # imported here: it takes a second

        self._grain, self._batch = grain, batch
        self._examples = _endless(dataset, seed, grain)
        self._rows = range(batch) if rows is None else rows
        self._begin(0)

    def _begin(self, start: int) -> None:
        """Batches from an example on."""
        self._start = start

        def read(number: int) -> Batch:
            chosen = [self._examples[start + number * self._batch + row] for row in self._rows]
            return {name: np.stack([one[name] for one in chosen]) for name in chosen[0]}

        stream = self._grain.MapDataset.range(_ENDLESS // self._batch).map(read)
        ahead = self._grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
        self._iterator = iter(stream.to_iter_dataset(ahead))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def position(self) -> dict[str, Any]:
        return {"examples": self._start + self._iterator.get_state()["next_index"] * self._batch}

    def go_to(self, position: dict[str, Any]) -> None:
        batches = position.get("next_index", 0)  # as it was said before batches could change in size
        self._begin(position.get("examples", batches * self._batch))


def _endless(dataset: Dataset, seed: int, grain: Any) -> Any:
    """Shuffled examples at random access, epoch after epoch; of a mixture in the shares of its weights."""
    if dataset.mixed:
        parts = [_endless(one, _seed_of(one, seed), grain) for one, _ in dataset.mixed]
        return grain.MapDataset.mix(parts, [weight for _, weight in dataset.mixed])
    return grain.MapDataset.range(dataset.size).seed(seed).shuffle().repeat(None).map(dataset.example)


def _seed_of(dataset: Dataset, seed: int) -> int:
    """Parts of a mixture that are alike have orders of their own."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{dataset.name}".encode()).digest()[:4], "big")
