"""What is found out about files once, and kept beside the runs: hashes, ids of text, where examples begin."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .._errors import message
from .._tables import size
from .._writing import not_written
from ._dataset import DataError
from ._files import Source

_VERSION = 1
_CHUNK = 2**22  # bytes that are hashed at a time
_THREADS = 4
_HASHED = 5e8  # bytes a second, about


class Cache:
    """A folder of files that can be removed at any time: they are made again.

    Each says what it is of. One that is of something else is an error, not something to be used.

    Args:
      folder: where; None: nothing is kept.
      writes: does this process write, or only read what another has written?
      tell: is told, in a few words, of work that takes long and is done once.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        writes: bool = True,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.folder, self._writes, self._tell = folder, writes, tell

    def tell(self, what: str, amount: int, *, rate: float = _HASHED) -> None:
        """Tells of work on so many bytes, at so many in a second, if that is worth a word."""
        if amount >= rate:
            self._tell(f"{what}, {size(amount)}, once ...")

    def place(self, of: Any, suffix: str) -> Path | None:
        """The path of the file that is of something."""
        key = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:16]
        return None if self.folder is None else self.folder / f"{of[0]}-{key}{suffix}"

    def table(self, of: Sequence[str]) -> dict[str, Any]:
        """What was kept by `keep` under the same description; empty where nothing was.

        Raises:
          DataError: the file there is of something else.
        """
        path = self.place(of, ".json")
        if path is None or not path.is_file():
            return {}
        try:
            found = json.loads(path.read_bytes())
            if found["version"] != _VERSION or found["of"] != list(of):
                raise ValueError(f"got {found['of']}")
            return found["kept"]
        except (ValueError, KeyError, TypeError) as error:
            raise _other(path, of, error) from None

    def keep(self, of: Sequence[str], kept: dict[str, Any]) -> None:
        """Keeps a table.

        Raises:
          DataError: it cannot be written.
        """
        path = self.place(of, ".json")
        if path is not None and self._writes:
            content = json.dumps({"version": _VERSION, "of": list(of), "kept": kept})
            self.write(path, lambda aside: aside.write_text(content))

    def array(self, of: Sequence[str], make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that is made once.

        Raises:
          DataError: the file there is of something else, or cannot be written.
        """
        path = self.place(of, ".npz")
        if path is not None and path.is_file():
            try:
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                    if str(found["of"]) != json.dumps(list(of)):
                        raise ValueError(f"got {found['of']}")
                    return found["kept"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                raise _other(path, of, error) from None
        made = make()
        if path is not None and self._writes:

            def save(aside: Path) -> None:
                with aside.open("wb") as stream:
                    np.savez(stream, of=json.dumps(list(of)), kept=made)

            self.write(path, save)
        return made

    def write(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Writes a file in one rename.

        Raises:
          DataError: it cannot be written; nothing of it is left.
        """
        aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(aside)
            os.replace(aside, path)
        except OSError as error:
            raise DataError(not_written("data", path, error)) from None
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


NOTHING = Cache(None)  # is kept


def hashed(root: Path, names: Sequence[str], cache: Cache) -> list[Source]:
    """The files as they are, with the SHA-256 of their content.

    A file is read only where its size or its time differ from what the cache knows.

    Raises:
      DataError: a file changes while it is read, or cannot be; the cache is of other files.
    """
    of = ("index", str(root.resolve()))
    known = {k: tuple(v) for k, v in cache.table(of).items()}

    def source(name: str) -> Source:
        try:
            return _hashed(root / name, name, known.get(name))
        except OSError as error:
            wrong = f"{str(root / name)!r} cannot be read, got {error.strerror}"
            raise DataError(message("data", wrong, do="Leave files as they are while a run starts")) from None

    cache.tell(f"indexing {str(root)!r}", sum(_size(root / name) for name in names if name not in known))
    with ThreadPoolExecutor(_THREADS) as threads:
        found = list(threads.map(source, names))
    kept = {s.name: [s.size, s.changed, s.sha256] for s in found}
    if kept != {name: list(known.get(name, ())) for name in names}:
        cache.keep(of, {name: list(v) for name, v in known.items()} | kept)
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _hashed(path: Path, name: str, known: Sequence[Any] | None) -> Source:
    before = path.stat()
    if known is not None and tuple(known[:2]) == (before.st_size, before.st_mtime_ns):
        return Source(name, before.st_size, before.st_mtime_ns, known[2])
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        wrong = f"{str(path)!r} changes while it is read, got {after.st_size} bytes"
        raise DataError(message("data", wrong, allowed=f"it had {before.st_size} bytes", do="Start again"))
    return Source(name, before.st_size, before.st_mtime_ns, digest.hexdigest())


def _other(path: Path, of: Sequence[str], error: Exception) -> DataError:
    wrong = f"the cache {str(path)!r} is damaged or of other files ({str(error)[:200]})"
    allowed = f"it is of {' '.join(of)}"
    return DataError(message("data", wrong, allowed=allowed, do="Remove it, and it is made again"))
