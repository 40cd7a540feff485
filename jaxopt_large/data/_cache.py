"""What is found out about files once, and kept beside the runs: hashes, ids of text, where examples begin."""

import contextlib
import glob
import hashlib
import json
import os
import time
import uuid
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
from ._files import Source, unreadable

_VERSION = 1
_CHUNK = 2**22  # bytes that are hashed at a time
_THREADS = 4
_GIVEN_UP = 6 * 3600  # seconds without a write after which nobody writes any more
_HASHED = 5e8  # bytes a second, about


class Cache:
    """A folder of files that can be removed at any time: they are made again.

    Each says what it is of. One that is of something else is an error, not something to be used.

    Args:
      folder: where; None: nothing is kept.
      tell: is told, in a few words, of work that takes long and is done once.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.folder, self._tell = folder, tell

    @property
    def beside(self) -> Path | None:
        """The folder of runs that it is in."""
        return None if self.folder is None else self.folder.parent

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
            kept = found["kept"]
            if found["version"] != _VERSION or found["of"] != list(of) or not isinstance(kept, dict):
                raise ValueError(f"got {found['of']}")
            return kept
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _other(path, of, error) from None

    def keep(self, of: Sequence[str], kept: dict[str, Any]) -> None:
        """Keeps a table.

        Raises:
          DataError: it cannot be written.
        """
        path = self.place(of, ".json")
        if path is not None:
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
        if path is not None:

            def save(aside: Path) -> None:
                with aside.open("wb") as stream:
                    np.savez(stream, of=json.dumps(list(of)), kept=made)

            self.write(path, save, keeps=True)
        return made

    def write(self, path: Path, write: Callable[[Path], Any], *, keeps: bool = False) -> None:
        """Writes a file that is there whole or not at all.

        Args:
          path: the file.
          write: writes it, under another name.
          keeps: one that another run has made meanwhile stays: somebody may read it.

        Raises:
          DataError: it cannot be written; nothing of it is left.
        """
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
            write(aside)
            with aside.open("rb") as stream:
                os.fsync(stream.fileno())
            if keeps and path.exists():
                return
            os.replace(aside, path)
        except OSError as error:
            raise DataError(not_written("data", path, error)) from None
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """What runs have left that were killed while they wrote the same."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # another run was faster
            if time.time() - old.stat().st_mtime > _GIVEN_UP:
                old.unlink()


NOTHING = Cache(None)  # is kept


def hashed(root: Path, names: Sequence[str], cache: Cache) -> list[Source]:
    """The files as they are, with the SHA-256 of their content.

    A file is read only where its size or its time differ from what the cache knows.

    Raises:
      DataError: a file changes while it is read, or cannot be; the cache is of other files.
    """
    of = ("index", str(root.resolve()))
    known = cache.table(of)
    wrong = next((v for v in known.values() if not (isinstance(v, list) and len(v) == 3)), None)
    if wrong is not None:
        raise _other(Path(str(cache.place(of, ".json"))), of, ValueError(f"got {wrong!r}"))
    sizes = {name: _stat(root / name) for name in names}
    changed = [n for n in names if known.get(n, [])[:2] != [sizes[n].st_size, sizes[n].st_mtime_ns]]
    cache.tell(f"indexing {str(root)!r}", sum(sizes[name].st_size for name in changed))
    with ThreadPoolExecutor(_THREADS) as threads:
        made = threads.map(lambda name: _hashed(root / name, sizes[name]), changed)
        fresh = dict(zip(changed, made, strict=True))
    found = known | {n: [sizes[n].st_size, sizes[n].st_mtime_ns, sha] for n, sha in fresh.items()}
    if changed:
        cache.keep(of, found)
    return [Source(name, *found[name]) for name in names]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from None


def _hashed(path: Path, before: os.stat_result) -> str:
    """The SHA-256 of a file that stays as it is meanwhile."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_CHUNK):
                digest.update(piece)
        after = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        wrong = f"{str(path)!r} changes while it is read, got {after.st_size} bytes"
        raise DataError(message("data", wrong, allowed=f"it had {before.st_size} bytes", do="Start again"))
    return digest.hexdigest()


def _other(path: Path, of: Sequence[str], error: Exception) -> DataError:
    wrong = f"the cache {str(path)!r} is damaged or of other files ({str(error)[:200]})"
    allowed = f"it is of {' '.join(of)}"
    return DataError(message("data", wrong, allowed=allowed, do="Remove it, and it is made again"))
