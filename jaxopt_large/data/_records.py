"""Token ids in the records of an ArrayRecord file, one document each."""

from pathlib import Path

import numpy as np

from .._errors import message
from ._cache import Cache
from ._dataset import DataError
from ._files import Reader, Source
from ._streams import Joined

_READ = 64  # records at a time


def records(
    reader: Reader, file: Path, source: Source, dtype: np.dtype, end_of_text: int | None, cache: Cache
) -> Joined:
    """The records of a file one after the other, each followed by the end of text if there is one.

    Args:
      reader: knows whether the file has changed.
      file: an ArrayRecord file, read by grain.
      source: as it was found.
      dtype: of an id; a record is nothing but ids.
      end_of_text: the id that follows each record; None: nothing does.
      cache: keeps how long records are.

    Raises:
      DataError: the file is none of ArrayRecord, or a record is no whole number of ids.
    """
    import grain  # imported here: it takes a second

    def failed(error: Exception) -> DataError:
        reason = " ".join(str(error).split())[:200]
        wrong = f"{str(file)!r} is no ArrayRecord file, or a truncated one, got {reason}"
        return DataError(message("data", wrong, do="Write it anew"))

    try:
        held = grain.sources.ArrayRecordDataSource([str(file)])
        count = len(held)
    except (ValueError, RuntimeError, OSError, IndexError) as error:
        raise failed(error) from None

    def lengths() -> np.ndarray:
        found = []
        for start in range(0, count, _READ):
            some = range(start, min(start + _READ, count))
            try:
                found += [len(record) for record in held.__getitems__(some)]
            except (ValueError, RuntimeError, OSError, IndexError) as error:
                raise failed(error) from None
        return np.asarray(found, np.int64)

    of = ("records", source.sha256, str(source.size), str(source.changed), str(file.resolve()))
    sizes = cache.array(of, lengths)
    wrong = np.flatnonzero(sizes % dtype.itemsize)
    if wrong.size:
        text = f"record {wrong[0]} of {str(file)!r} ends within an id"
        got = f"got {sizes[wrong[0]]} bytes of {dtype.itemsize} each"
        raise DataError(message("data", f"{text}, {got}", do="data.dtype may be another"))

    def read(row: int, start: int, stop: int) -> np.ndarray:
        reader.read(file, source, 0, 0)  # raises if the file has changed
        try:
            return np.frombuffer(held[row], dtype)[start:stop]
        except (ValueError, RuntimeError, OSError, IndexError) as error:
            raise failed(error) from None

    def place(row: int, at: int) -> str:
        return f"{str(file)!r}, record {row}, at byte {at * dtype.itemsize}"

    return Joined(sizes // dtype.itemsize, read, place, joiner=end_of_text, closing=end_of_text is not None)
