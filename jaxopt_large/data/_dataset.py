"""What a data set is to the training loop."""

import dataclasses
from collections.abc import Callable, Mapping
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
      unit: what the loss is per: "byte", "token", "example".
      facts: what identifies the data: SHA-256, number of files, bytes.
      files: name -> (size, hash) of each file, to say which of them have changed.
      mixed: the data sets of a mixture, each with its weight; they are drawn from in the place of `example`.
      former: makes the SHA-256 by which checkpoints knew the same data before each file had one.
    """

    name: str
    size: int
    example: Callable[[int], Batch]
    validation: Batch
    tokens_per_example: int
    unit: str
    facts: dict[str, Any]
    files: Mapping[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    mixed: tuple[tuple["Dataset", float], ...] = ()
    former: Callable[[], str] | None = None
