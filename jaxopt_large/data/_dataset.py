"""What a data set is to the training loop."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


class DataError(ValueError):
    """The data cannot be used; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training examples at random access, and fixed validation batches.

    Attributes:
      name: for reports.
      size: number of training examples.
      example: index -> example, a dictionary of arrays.
      validation: the validation examples, stacked.
      tokens_per_example: what throughput counts.
      unit: what the loss is per: "byte", "example".
      facts: what identifies the data: SHA-256, number of files, bytes.
    """

    name: str
    size: int
    example: Callable[[int], Batch]
    validation: Batch
    tokens_per_example: int
    unit: str
    facts: dict[str, Any]


class Batches:
    """An endless, shuffled stream of training batches that can be left and taken up again.

    Every epoch has an order of its own. The position is a small dictionary for a checkpoint.
    """

    def __init__(self, dataset: Dataset, batch: int, seed: int):
        import grain  # imported here: it takes a second

        stream = grain.MapDataset.range(dataset.size).seed(seed).shuffle().repeat(None)
        stream = stream.map(dataset.example).batch(batch, drop_remainder=True)
        self._iterator = iter(
            stream.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def position(self) -> dict[str, Any]:
        return self._iterator.get_state()

    def go_to(self, position: dict[str, Any]) -> None:
        self._iterator.set_state(position)
