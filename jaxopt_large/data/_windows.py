"""Examples of one length, cut from streams of ids."""

import bisect
from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .._errors import message
from ._dataset import Batch, DataError
from ._streams import Stream

_LARGEST = 2**31  # models take ids in 32 bits


class Examples(Protocol):
    """Examples at random access.

    Attributes:
      count: how many.
      targets: how many ids they predict, all together.
    """

    count: int
    targets: int

    def example(self, index: int) -> Batch:
        """The example of that number: "tokens", `context` and one more.

        Raises:
          DataError: an id is not in the vocabulary, or a file has changed.
        """


class Windows:
    """Stretches of `context` ids and their last target, each of one stream."""

    def __init__(self, streams: Sequence[Stream], context: int, vocabulary: int | None):
        self._streams, self._context, self._vocabulary = streams, context, vocabulary
        self._ends = np.cumsum([max(0, (s.length - 1) // context) for s in streams])
        self.count = int(self._ends[-1]) if len(streams) else 0
        self.targets = self.count * context

    def example(self, index: int) -> Batch:
        number, index = located(self._ends, index)
        return _window(self._streams[number], index * self._context, self._context, self._vocabulary)


class Packed:
    """Whole documents, as many as fit into `context`; one that is longer is cut.

    An example predicts the ids of `tokens[1:]` where its "mask" is set. Its first is the one before them in
    the stream, so that every id of a stream is predicted once, in one example; before a stream's first stands
    the end of text. What is left of an example's length is filled with ends of text, which nothing predicts.

    Args:
      streams: in which documents stand one after the other.
      starts: for each, where its examples begin, from `packed_starts`.
      context: ids that an example predicts, at most.
      end_of_text: the id that ends a document.
      vocabulary: ids are below it; None: not checked.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        starts: Sequence[np.ndarray],
        context: int,
        end_of_text: int,
        vocabulary: int | None,
    ):
        self._streams, self._starts, self._context = streams, starts, context
        self._end, self._vocabulary = end_of_text, vocabulary
        self._ends = np.cumsum([len(s) for s in starts])
        self.count = int(self._ends[-1]) if len(streams) else 0
        self.targets = sum(s.length for s in streams)

    def example(self, index: int) -> Batch:
        number, index = located(self._ends, index)
        stream, starts = self._streams[number], self._starts[number]
        start = int(starts[index])
        stop = int(starts[index + 1]) if index + 1 < len(starts) else stream.length
        ids = checked(stream, max(start - 1, 0), stop, self._vocabulary)
        ids = ids if start else np.concatenate([[self._end], ids])
        tokens = np.full(self._context + 1, self._end, np.int32)
        tokens[: len(ids)] = ids
        return {"tokens": tokens, "mask": np.arange(self._context) < stop - start}


def located(ends: np.ndarray, index: int) -> tuple[int, int]:
    """In which of several rows an index over all of them is, and where in it.

    >>> located(np.cumsum([3, 0, 2]), 3)
    (2, 0)
    """
    number = int(np.searchsorted(ends, index, side="right"))
    return number, index - (int(ends[number - 1]) if number else 0)


def packed_starts(length: int, ends: np.ndarray, context: int) -> np.ndarray:
    """Where examples of whole documents begin in a stream.

    Args:
      length: of the stream.
      ends: the places that follow a document, rising.
      context: the most ids of an example.

    >>> packed_starts(12, np.asarray([2, 5, 12]), 4).tolist()  # the last document is cut
    [0, 2, 5, 9]
    """
    known, starts, start = array("q", ends.astype(np.int64).tobytes()), array("q"), 0
    low = 0
    while start < length:
        starts.append(start)
        low = bisect.bisect_right(known, start + context, low)
        end = known[low - 1] if low else 0
        rest = length if length - start <= context else 0
        start = max(end, rest) if max(end, rest) > start else start + context
    return np.frombuffer(starts, np.int64) if starts else np.zeros(0, np.int64)


def spread(examples: Examples, count: int) -> Batch:
    """`count` examples at even distances, or all there are, stacked."""
    chosen = np.linspace(0, examples.count - 1, min(count, examples.count)).astype(np.int64)
    return _stacked([examples.example(int(n)) for n in chosen])


def spread_windows(stream: Stream, context: int, count: int, vocabulary: int | None) -> Batch:
    """`count` windows of a stream at even distances, stacked; they overlap where it is short."""
    starts = stream.length - context  # at which a window can begin
    chosen = np.linspace(0, starts - 1, min(count, starts)).astype(np.int64)
    return _stacked([_window(stream, int(start), context, vocabulary) for start in chosen])


def _window(stream: Stream, start: int, context: int, vocabulary: int | None) -> Batch:
    return {"tokens": checked(stream, start, start + context + 1, vocabulary).astype(np.int32)}


def _stacked(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def checked(stream: Stream, start: int, stop: int, vocabulary: int | None) -> np.ndarray:
    """The ids of these places, all of them in the vocabulary.

    Raises:
      DataError: one is not.
    """
    ids, most = stream.read(start, stop), min(_LARGEST, vocabulary or _LARGEST)
    wrong = np.flatnonzero((ids < 0) | (ids >= most))
    if wrong.size:
        at = int(wrong[0])
        text = f"an id is not in the vocabulary, got {ids[at]} in {stream.place(start + at)}"
        allowed = f"0 to {most - 1}, by model.vocabulary"
        raise DataError(message("data", text, allowed=allowed, do="Raise that, or tokenize anew"))
    return ids
