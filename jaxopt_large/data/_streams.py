"""Long rows of ids that are read where they are needed: bytes of files, ids of files, many of them joined."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ._files import Reader, Source

_SCANNED = 2**22  # ids that are looked through at a time


class Stream(Protocol):
    """Ids at random access.

    Attributes:
      length: how many.
    """

    length: int

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids of these places; there must be so many."""

    def place(self, at: int) -> str:
        """Where an id stands: "'file' at byte 7"."""

    def ends(self, end_of_text: int) -> np.ndarray:
        """The places that follow an end of text, rising."""


class FileIds:
    """The ids in a file, or in a part of it.

    Args:
      reader: reads it.
      path: the file.
      source: as it was found.
      dtype: of an id.
      header: bytes before the first of them.
      length: how many; by default all.
    """

    def __init__(
        self,
        reader: Reader,
        path: Path,
        source: Source,
        dtype: np.dtype,
        *,
        header: int = 0,
        length: int | None = None,
    ):
        self._reader, self.path, self.source = reader, path, source
        self._dtype, self._header = dtype, header
        self.length = (source.size - header) // dtype.itemsize if length is None else length

    def read(self, start: int, stop: int) -> np.ndarray:
        size = self._dtype.itemsize
        at = self._header + start * size
        return np.frombuffer(
            self._reader.read(self.path, self.source, at, (stop - start) * size), self._dtype
        )

    def place(self, at: int) -> str:
        return f"{str(self.path)!r} at byte {self._header + at * self._dtype.itemsize}"

    def ends(self, end_of_text: int) -> np.ndarray:
        return scanned(self, end_of_text)


class Part:
    """Some of a stream."""

    def __init__(self, whole: Stream, start: int, stop: int):
        self._whole, self._start, self.length = whole, start, stop - start

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._whole.read(self._start + start, self._start + stop)

    def place(self, at: int) -> str:
        return self._whole.place(self._start + at)

    def ends(self, end_of_text: int) -> np.ndarray:
        found = self._whole.ends(end_of_text) - self._start
        return found[(found > 0) & (found <= self.length)]


class Joined:
    """Many rows of ids, one after the other.

    Args:
      lengths: of the rows.
      read: (number of a row, start, stop) -> its ids.
      place: (number of a row, place in it) -> where that is.
      joiner: an id between two rows; None: nothing.
      closing: does the joiner follow the last row too?
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        read: Callable[[int, int, int], np.ndarray],
        place: Callable[[int, int], str],
        *,
        joiner: int | None = None,
        closing: bool = False,
    ):
        self._lengths = np.asarray(lengths, np.int64)
        self._read, self._place, self._joiner, self._closing = read, place, joiner, closing
        spaced = self._lengths + (joiner is not None)
        self._starts = np.cumsum(spaced) - spaced
        self.length = int(spaced.sum()) - (joiner is not None and not closing and len(spaced) > 0)

    def read(self, start: int, stop: int) -> np.ndarray:
        pieces, row = [], self._row(start)
        while start < stop:
            begin, length = int(self._starts[row]), int(self._lengths[row])
            upto = min(stop, begin + length)
            if start < upto:
                pieces.append(self._read(row, start - begin, upto - begin).astype(np.int64))
            if self._joiner is not None and stop > begin + length:
                pieces.append(np.asarray([self._joiner], np.int64))
                upto = begin + length + 1
            start, row = max(start, upto), row + 1
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)

    def place(self, at: int) -> str:
        row = self._row(at)
        return self._place(row, at - int(self._starts[row]))

    def ends(self, end_of_text: int) -> np.ndarray:
        if end_of_text != self._joiner:
            return scanned(self, end_of_text)
        inner = self._starts[1:]
        return np.append(inner, self.length) if self._closing else inner

    def _row(self, at: int) -> int:
        return int(np.searchsorted(self._starts, at, side="right")) - 1


def scanned(stream: Stream, end_of_text: int) -> np.ndarray:
    """The places that follow an end of text, found by reading all of it once."""
    found = [
        start + 1 + np.flatnonzero(stream.read(start, min(start + _SCANNED, stream.length)) == end_of_text)
        for start in range(0, stream.length, _SCANNED)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
