"""A data set of streams of ids: how they are cut into examples, and what of them validates."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import message
from ._cache import Cache
from ._dataset import Batch, DataError, Dataset
from ._streams import Stream
from ._windows import Examples, Packed, Windows, packed_starts, spread, spread_windows


@dataclasses.dataclass(frozen=True)
class Cut:
    """How streams become examples.

    Attributes:
      context: ids that an example predicts, at most.
      validation_windows: validation examples, at most.
      vocabulary: ids are below it; None: not checked.
      end_of_text: the id that ends a document; None: there is none.
      pack: are examples whole documents?
    """

    context: int
    validation_windows: int
    vocabulary: int | None
    end_of_text: int | None = None
    pack: bool = False


def dataset(
    root: Path,
    cut: Cut,
    train: Sequence[Stream],
    validation: Sequence[Stream],
    cache: Cache,
    *,
    unit: str,
    facts: dict[str, Any],
    key: str,
    files: Mapping[str, tuple[int, str]],
    do: str = "Add longer files, or lower it",
) -> Dataset:
    """The data set of these streams.

    Args:
      root: the folder or file they came from, for reports.
      cut: how they become examples.
      train: streams to train on.
      validation: streams to validate on.
      cache: keeps where examples of whole documents begin.
      unit: of an id: "byte" or "token".
      facts: what identifies the data.
      key: identifies the streams, by content, order and part.
      files: name -> (size, hash).
      do: what to do where there is too little.

    Raises:
      DataError: there is too little for one example of each.
    """
    parts = {"training": list(train), "validation": list(validation)}
    made = {name: _examples(cut, name, streams, cache, key) for name, streams in parts.items()}
    for name, found in made.items():
        if not found.count:
            longest = max((s.length for s in parts[name]), default=0)
            wrong = f"too little {name} data in {str(root)!r}, got {longest} {unit}s at most in one piece"
            allowed = "one document" if cut.pack else f"more than data.context = {cut.context} {unit}s"
            raise DataError(message("data", wrong, allowed=allowed, do=do))
    amounts = {name: sum(s.length for s in streams) for name, streams in parts.items()}
    own = {f"train_{unit}s": amounts["training"], f"validation_{unit}s": amounts["validation"]}
    return Dataset(
        name=root.name,
        size=made["training"].count,
        example=made["training"].example,
        validation=_validation(cut, parts["validation"], made["validation"]),
        tokens_per_example=round(made["training"].targets / made["training"].count),
        unit=unit,
        facts=facts | own,
        files=files,
    )


def _validation(cut: Cut, streams: Sequence[Stream], made: Examples) -> Batch:
    if cut.pack or len(streams) > 1:
        return spread(made, cut.validation_windows)
    return spread_windows(streams[0], cut.context, cut.validation_windows, cut.vocabulary)


def _examples(cut: Cut, name: str, streams: Sequence[Stream], cache: Cache, key: str) -> Examples:
    if not cut.pack:
        return Windows(streams, cut.context, cut.vocabulary)
    end = cut.end_of_text
    if end is None:
        wrong = "documents cannot be packed, got no data.end_of_text"
        raise DataError(message("data", wrong, do="Give the id that ends a document"))

    def make(end: int = end) -> np.ndarray:
        cache.tell(f"finding the documents that end with {end}", 2 * sum(s.length for s in streams))
        found = [packed_starts(s.length, s.ends(end), cut.context) for s in streams]
        return np.concatenate([np.asarray([len(x) for x in found], np.int64), *found])

    both = cache.array(("packed", name, key, str(cut.context), str(end)), make)
    counts, starts = both[: len(streams)], both[len(streams) :]
    each = np.split(starts, np.cumsum(counts)[:-1]) if len(streams) else []
    return Packed(streams, each, cut.context, end, cut.vocabulary)
