"""Files of data: which there are, and reading them while nobody may change them."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .._errors import message
from ._dataset import DataError

_OPEN = 64  # files at a time


class Source(NamedTuple):
    """A file as it was found: what a run is known by, and what must stay."""

    name: str  # within its folder
    size: int
    changed: int  # nanoseconds since 1970
    sha256: str  # of the content, or of samples of it


def expanded(path: str | Path) -> Path:
    """A path whose `~` is a home, where there is such a user."""
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


class Reader:
    """Reads pieces of files, from any thread.

    What is read is a copy: a file that somebody cuts off is an error here, and not the end of the process, as
    it is where files are mapped.
    """

    def __init__(self) -> None:
        self._opened: Callable[[str], _Opened] = functools.lru_cache(_OPEN)(_Opened)

    def read(self, path: Path, source: Source, start: int, count: int) -> bytes:
        """`count` bytes from the byte `start` on.

        Raises:
          DataError: the file is not as it was found.
        """
        try:
            opened = self._opened(str(path))  # held: another thread may push it out of the cache
            now = os.stat(path)  # and not of what is open, which may have been replaced
            if (now.st_size, now.st_mtime_ns) != (source.size, source.changed):
                raise _changed(path, source, start, f"got {now.st_size} bytes")
            pieces = []
            while count > 0:
                piece = os.pread(opened.number, count, start)
                if not piece:
                    raise _changed(path, source, start, "got its end")
                pieces.append(piece)
                start, count = start + len(piece), count - len(piece)
        except OSError as error:
            raise _changed(path, source, start, f"got {error.strerror}") from None
        return b"".join(pieces)


class _Opened:
    """A file's descriptor; closed when no cache and no thread has it any more."""

    def __init__(self, path: str):
        self.number = -1
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def _changed(path: Path, source: Source, start: int, got: str) -> DataError:
    return DataError(
        message(
            "data",
            f"{str(path)!r} has changed since the run found it, {got}",
            at=f"byte {start}",
            allowed=f"it had {source.size} bytes",
            do="Leave a run's files as they are; to go on with others, start a run of another name",
        )
    )


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file that the system does not let anyone read."""
    wrong = f"{str(path)!r} cannot be read, got {error.strerror}"
    return DataError(message("data", wrong, do="Leave files as they are while a run starts, and readable"))


def files_under(root: Path, beside: Path | None) -> list[Path]:
    """The files in a folder, relative to it and by name: none that is hidden, or belongs to the runs.

    Args:
      root: the folder.
      beside: the folder of runs; None: there is none.
    """
    apart = None if beside is None else beside.resolve()
    inside = apart is not None and root.resolve() in apart.parents
    found = []
    for folder, folders, names in os.walk(root, followlinks=False):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (inside and (here / name).resolve() == apart)
        ]
        found += [(here / name).relative_to(root) for name in names if not name.startswith(".")]
    return sorted(f for f in found if (root / f).is_file())


def differences(before: dict[str, tuple[int, str]], now: dict[str, tuple[int, str]]) -> list[str]:
    """Which files changed, came or went; each file is known by its size and hash.

    >>> differences({"a": (1, "x"), "b": (2, "y")}, {"a": (3, "z"), "c": (2, "y")})
    ["'a' has 3 bytes, had 1", "'b' is gone", "'c' is new"]
    """
    found = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            found.append(f"{name!r} is gone")
        elif name not in before:
            found.append(f"{name!r} is new")
        elif before[name] != now[name]:
            sizes = now[name][0], before[name][0]
            told = f"has {sizes[0]} bytes, had {sizes[1]}" if len(set(sizes)) > 1 else "has other content"
            found.append(f"{name!r} {told}")
    return found
