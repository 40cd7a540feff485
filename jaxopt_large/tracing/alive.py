"""Bytes that are alive at one moment."""

from typing import NamedTuple


class Alive(NamedTuple):
    """Bytes at one moment.

    Attributes:
      large: of arrays that are in memory for certain.
      small: of those that can be in a chip's fast memory, so far as that has room.
    """

    large: int = 0
    small: int = 0

    def __add__(self, other: "Alive") -> "Alive":  # type: ignore[override]
        return Alive(self.large + other.large, self.small + other.small)

    def __sub__(self, other: "Alive") -> "Alive":
        return Alive(self.large - other.large, self.small - other.small)

    def beside(self, fast: int) -> int:
        """What is in memory beside fast memory of so many bytes."""
        return self.large + max(0, self.small - fast)

    def fullness(self, fast: int) -> tuple[int, int]:
        """By which moments are compared: what is in memory, and then what there is at all."""
        return self.beside(fast), self.large + self.small
