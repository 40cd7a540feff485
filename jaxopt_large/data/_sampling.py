"""Poisson samples: every example is in a batch or not, whatever else is in it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._dataset import Batch, Dataset

_RARE = 1e-18  # of all draws, at most, need more room than there is


class PoissonBatches:
    """An endless stream of Poisson samples, filled up to one shape; a draw's number is its position.

    Beside the examples' arrays a batch has "there", False for what only fills it, and "draw", the number.
    What a draw holds depends on the secret and on the number. In the rare case that it is larger than the
    room, as many as there is room for are taken of it by chance.

    Args:
      dataset: of the examples; not a mixture.
      expected: examples of a batch, on average.
      room: examples that a batch has room for, from `room_for`.
      secret: what the draws depend on; nobody else should know it.
      rows: those of each batch that this process reads, rising; all by default.
    """

    def __init__(
        self, dataset: Dataset, expected: int, room: int, secret: int, *, rows: Sequence[int] | None = None
    ):
        self._dataset, self._rate, self._room = dataset, expected / dataset.size, room
        self._secret, self._next = secret, 0
        self._rows = range(room) if rows is None else rows

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        drawn, number = self.draw(self._next), self._next
        self._next += 1
        chosen = [self._dataset.example(int(drawn[row]) if row < len(drawn) else 0) for row in self._rows]
        batch = {name: np.stack([one[name] for one in chosen]) for name in chosen[0]}
        there = np.array([row < len(drawn) for row in self._rows])
        return {**batch, "there": there, "draw": np.full(len(there), number, np.int32)}

    def draw(self, number: int) -> np.ndarray:
        """Which examples are in a draw."""
        chance = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._secret, number])))
        count = chance.binomial(self._dataset.size, min(1.0, self._rate))
        drawn = chance.choice(self._dataset.size, count, replace=False)
        return drawn[: self._room]

    def position(self) -> dict[str, Any]:
        """The number of the next draw."""
        return {"draws": self._next}

    def go_to(self, position: dict[str, Any]) -> None:
        """Goes on with a draw."""
        self._next = position["draws"]


def room_for(size: int, expected: int, parts: int) -> int:
    """How many examples a Poisson sample has room for, a multiple of `parts`, and of no more than all.

    >>> room_for(1437, 64, 8)
    152
    """
    low, high = expected - 1, size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _tail(size, expected / size, middle) <= _RARE else (middle, high)
    return -(-high // parts) * parts


def _tail(size: int, rate: float, most: int) -> float:
    """A bound on the probability that more than `most` are drawn (Chernoff 1952)."""
    share = (most + 1) / size
    if share >= 1:
        return rate**size if share == 1 else 0.0
    if share <= rate:
        return 1.0
    divergence = share * math.log(share / rate) + (1 - share) * math.log((1 - share) / (1 - rate))
    return math.exp(-size * divergence)
