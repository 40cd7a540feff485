"""Token ids as tokenizing tools write them: files of numbers, mapped into memory and never read whole."""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .._errors import message
from ._dataset import Batch, DataError, Dataset

_SAMPLES, _SAMPLE = 64, 2**16  # places of a file, and bytes there, by which it is known again


class _File(NamedTuple):
    """A file of ids, or a part of one."""

    path: Path
    ids: np.ndarray
    header: int  # bytes before the first of them


def tokens(
    path: str | Path,
    *,
    context: int,
    seed: int,
    validation_windows: int,
    dtype: str,
    validation: str | None,
    vocabulary: int | None = None,
) -> Dataset:
    """Ids in `.npy` files, or in `.bin` files of nothing but ids.

    An example is a stretch of one file; files are in the order of their names. Nothing is read before it is
    needed, so that files may be larger than memory.

    Args:
      path: a file, or a folder of such files.
      context: tokens per example; an example holds one more, the last target.
      seed: not used: files are what they are.
      validation_windows: validation examples, spread evenly.
      dtype: of `.bin` files, "uint16" as nanoGPT writes them.
      validation: a file or folder likewise; by default the last tenth of each file validates.
      vocabulary: ids are below it; None: not checked.

    Raises:
      FileNotFoundError: there is no such file or folder.
      DataError: a file is no whole number of ids, or no array of integers in one dimension; or there is too
        little for one example. From `example`: an id is not in the vocabulary.
    """
    del seed
    files = _files(path, dtype)
    if validation is not None:
        validates = _files(validation, dtype)
        others = {f.path.resolve() for f in validates}
        train = [f for f in files if f.path.resolve() not in others]
    else:
        cuts = [len(f.ids) - len(f.ids) // 10 for f in files]
        train = [f._replace(ids=f.ids[:cut]) for f, cut in zip(files, cuts, strict=True)]
        validates = [
            f._replace(ids=f.ids[cut:], header=f.header + cut * f.ids.itemsize)
            for f, cut in zip(files, cuts, strict=True)
        ]
    windows = _Windows(train, context, vocabulary)
    spread = _Windows(validates, context, vocabulary)
    for part, found, some in (("training", windows, train), ("validation", spread, validates)):
        if not found.count:
            where = validation if part == "validation" and validation is not None else path
            longest = max((len(f.ids) for f in some), default=0)
            wrong = f"too little {part} data in {str(where)!r}, got {longest} ids at most in a file"
            allowed = f"one of more than data.context = {context}"
            raise DataError(message("data", wrong, allowed=allowed, do="Add longer files, or lower it"))
    chosen = np.linspace(0, spread.count - 1, min(validation_windows, spread.count)).astype(np.int64)
    return Dataset(
        name=Path(path).name,
        size=windows.count,
        example=windows.example,
        validation={"tokens": np.stack([spread.example(int(n))["tokens"] for n in chosen])},
        tokens_per_example=context,
        unit="token",
        facts={
            "sha256": _known_by([*train, *validates]),
            "files": len(files),
            "train_tokens": sum(len(f.ids) for f in train),
            "validation_tokens": sum(len(f.ids) for f in validates),
        },
    )


class _Windows:
    """Stretches of `context` ids and their last target, none of which reaches from one file into another."""

    def __init__(self, files: Sequence[_File], context: int, vocabulary: int | None):
        self._files, self._context, self._vocabulary = files, context, vocabulary
        self._ends = np.cumsum([max(0, (len(f.ids) - 1) // context) for f in files])
        self.count = int(self._ends[-1]) if files else 0

    def example(self, index: int) -> Batch:
        """The stretch of that number.

        Raises:
          DataError: an id is not in the vocabulary.
        """
        number = int(np.searchsorted(self._ends, index, side="right"))
        file = self._files[number]
        start = (index - (int(self._ends[number - 1]) if number else 0)) * self._context
        ids = np.asarray(file.ids[start : start + self._context + 1])
        most = min(2**31, self._vocabulary or 2**31)  # models take them in 32 bits
        wrong = np.flatnonzero((ids < 0) | (ids >= most))
        if wrong.size:
            place = int(wrong[0])
            at = file.header + (start + place) * file.ids.itemsize
            text = f"an id is not in the vocabulary, got {ids[place]} in {str(file.path)!r} at byte {at}"
            raise DataError(
                message(
                    "data",
                    text,
                    allowed=f"0 to {most - 1}, by model.vocabulary",
                    do="Raise that, or tokenize anew",
                )
            )
        return {"tokens": ids.astype(np.int32)}


def _files(path: str | Path, dtype: str) -> list[_File]:
    root = Path(path)
    with contextlib.suppress(RuntimeError):  # there is no such user
        root = root.expanduser()
    if not root.exists():
        wrong = f"there is no file or folder {str(path)!r}"
        raise FileNotFoundError(message("data", wrong, do="Give one of .npy or .bin files"))
    inside = (f for f in root.rglob("*") if f.is_file() and not f.name.startswith("."))
    found = sorted(f for f in inside if f.suffix in _OPENED) if root.is_dir() else [root]
    if not found or any(f.suffix not in _OPENED for f in found):
        wrong = f"no token ids are in {str(path)!r}"
        raise DataError(message("data", wrong, allowed=".npy and .bin files"))
    return [_OPENED[f.suffix](f, dtype) for f in found]


def _raw(file: Path, dtype: str) -> _File:
    kind, size = np.dtype(dtype), file.stat().st_size
    if size % kind.itemsize:
        wrong = f"{str(file)!r} ends within an id, got {size} bytes of {kind.itemsize} each"
        at = f"byte {size - size % kind.itemsize}"
        raise DataError(message("data", wrong, at=at, do="It is truncated, or data.dtype is another"))
    ids = np.memmap(file, kind, mode="r") if size else np.zeros(0, kind)
    return _File(file, ids, 0)


def _npy(file: Path, dtype: str) -> _File:
    del dtype  # the file says
    try:
        ids = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        wrong = f"{str(file)!r} is no array, or a truncated one, got {error}"
        raise DataError(message("data", wrong, do="Write it anew")) from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        wrong = f"{str(file)!r} holds no ids, got {ids.dtype}{list(ids.shape)}"
        raise DataError(message("data", wrong, allowed="integers in one dimension"))
    return _File(file, ids, int(getattr(ids, "offset", 0)))


_OPENED = {".bin": _raw, ".npy": _npy}


def _known_by(files: Sequence[_File]) -> str:
    """A hash of names, sizes, dtypes, what is taken of them, and samples: known again in no time."""
    digest = hashlib.sha256()
    for file in files:
        size = os.path.getsize(file.path)
        told = file.path.name, size, file.ids.dtype, file.header, len(file.ids)
        digest.update(repr(told).encode())
        with file.path.open("rb") as stream:
            for place in np.linspace(0, max(size - _SAMPLE, 0), _SAMPLES).astype(np.int64):
                stream.seek(int(place))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()
