"""Token ids as tokenizing tools write them: files of numbers that are read where they are needed."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._errors import message
from ._cache import NOTHING, Cache
from ._dataset import DataError, Dataset
from ._examples import Cut, dataset
from ._files import Reader, Source, expanded, files_under, unreadable
from ._records import records
from ._streams import FileIds, Part, Stream

_SAMPLES, _SAMPLE = 64, 2**16  # places of a file, and bytes there, by which it is known again


class _How(NamedTuple):
    """What opening a file takes."""

    reader: Reader
    dtype: np.dtype
    end_of_text: int | None
    cache: Cache


class _File(NamedTuple):
    """A file of ids."""

    path: Path
    source: Source
    ids: Stream
    told: str  # how it is read


def tokens(
    path: str | Path,
    *,
    context: int,
    seed: int,
    validation_windows: int,
    dtype: str,
    validation: str | None,
    cache: Cache = NOTHING,
    end_of_text: int | None = None,
    pack: bool = False,
    vocabulary: int | None = None,
) -> Dataset:
    """Ids in `.npy` files, in `.bin` files of nothing but ids, or in records of ArrayRecord files.

    An example is a stretch of one file, or whole documents of one; files are in the order of their names.
    Nothing is read before it is needed, so that files may be larger than memory.

    Args:
      path: a file, or a folder of such files.
      context: tokens per example; an example holds one more, the last target.
      seed: not used: files are what they are.
      validation_windows: validation examples, spread evenly.
      dtype: of `.bin` files and of records, "uint16" as nanoGPT writes them.
      validation: a file or folder likewise; by default the last tenth of each file validates.
      cache: keeps where documents begin, and how long records are.
      end_of_text: the id that ends a document. A record is one document; it follows each of them.
      pack: an example is whole documents, as many as fit.
      vocabulary: ids are below it; None: not checked.

    Raises:
      FileNotFoundError: there is no such file or folder.
      DataError: a file is no whole number of ids, or no array of integers in one dimension; or there is too
        little for one example. From `example`: an id is not in the vocabulary.
    """
    del seed
    how = _How(Reader(), np.dtype(dtype), end_of_text, cache)
    files = _files(path, how)
    if validation is not None:
        validates = _files(validation, how)
        others = {f.path.resolve() for f in validates}
        files = [f for f in files if f.path.resolve() not in others]
        train, spread = [f.ids for f in files], [f.ids for f in validates]
    else:
        cuts = [f.ids.length - f.ids.length // 10 for f in files]
        train = [Part(f.ids, 0, cut) for f, cut in zip(files, cuts, strict=True)]
        spread = [Part(f.ids, cut, f.ids.length) for f, cut in zip(files, cuts, strict=True)]
        validates = []
    facts: dict[str, Any] = {"sha256": _known_by(files, validates), "files": len(files)}
    known = {f.source.name: (f.source.size, f.source.sha256) for f in files}
    known |= {f"validation: {f.source.name}": (f.source.size, f.source.sha256) for f in validates}
    key = " ".join([facts["sha256"], *(str(f.source.changed) for f in [*files, *validates])])
    cut = Cut(context, validation_windows, vocabulary, end_of_text, pack)
    return dataset(expanded(path), cut, train, spread, cache, unit="token", facts=facts, key=key, files=known)


def _files(path: str | Path, how: _How) -> list[_File]:
    root = expanded(path)
    if not root.exists():
        wrong = f"there is no file or folder {str(path)!r}"
        raise FileNotFoundError(message("data", wrong, do="Give one of .npy, .bin or ArrayRecord files"))
    inside = files_under(root, how.cache.beside) if root.is_dir() else []
    found = [root / f for f in inside if _opener(f)] if root.is_dir() else [root]
    if not found or not all(_opener(f) for f in found):
        wrong = f"no token ids are in {str(path)!r}"
        raise DataError(message("data", wrong, allowed=".npy, .bin and .array_record files"))
    made = []
    for file in found:
        opener: Any = _opener(file)
        name = file.relative_to(root).as_posix() if root.is_dir() else file.name
        made.append(opener(file, _sampled(file, name), how))
    return made


def _opener(file: Path) -> Callable[[Path, Source, _How], _File] | None:
    """What reads files of that name: `.array_record-00000-of-00010` is one of ten."""
    if file.suffix.startswith(_RECORDS):
        return _record_file
    return _OPENED.get(file.suffix)


def _raw(file: Path, source: Source, how: _How) -> _File:
    kind, size = how.dtype, source.size
    if size % kind.itemsize:
        wrong = f"{str(file)!r} ends within an id, got {size} bytes of {kind.itemsize} each"
        at = f"byte {size - size % kind.itemsize}"
        raise DataError(message("data", wrong, at=at, do="It is truncated, or data.dtype is another"))
    return _File(file, source, FileIds(how.reader, file, source, kind), str(kind))


def _npy(file: Path, source: Source, how: _How) -> _File:
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        wrong = f"{str(file)!r} is no array, or a truncated one, got {error}"
        raise DataError(message("data", wrong, do="Write it anew")) from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        wrong = f"{str(file)!r} holds no ids, got {ids.dtype}{list(ids.shape)}"
        raise DataError(message("data", wrong, allowed="integers in one dimension"))
    header = int(getattr(ids, "offset", 0))
    stream = FileIds(how.reader, file, source, ids.dtype, header=header, length=len(ids))
    return _File(file, source, stream, str(ids.dtype))


def _record_file(file: Path, source: Source, how: _How) -> _File:
    stream = records(how.reader, file, source, how.dtype, how.end_of_text, how.cache)
    return _File(file, source, stream, f"{how.dtype} {how.end_of_text}")


_OPENED = {".bin": _raw, ".npy": _npy}
_RECORDS = (".array_record", ".arrayrecord")


def _sampled(path: Path, name: str) -> Source:
    """A file with a hash of samples of it: known again in no time."""
    digest = hashlib.sha256()
    try:
        found = path.stat()
        with path.open("rb") as stream:
            for place in np.linspace(0, max(found.st_size - _SAMPLE, 0), _SAMPLES).astype(np.int64):
                stream.seek(int(place))
                digest.update(stream.read(_SAMPLE))
    except OSError as error:
        raise unreadable(path, error) from None
    return Source(name, found.st_size, found.st_mtime_ns, digest.hexdigest())


def _known_by(train: Sequence[_File], validation: Sequence[_File]) -> str:
    """A hash of names, sizes, samples, and of how files are read."""
    told = [
        f"{part} {f.source.sha256} {f.source.size} {f.told} {f.source.name}\n"
        for part, files in (("train", train), ("validation", validation))
        for f in files
    ]
    return hashlib.sha256(os.fsencode("".join(told))).hexdigest()
