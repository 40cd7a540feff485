"""What is said when a file cannot be written: the reason, the room that it needs and the room there is."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from ._errors import message
from ._tables import size

_IN_TEXT = re.compile(r"os_error_code='(\d+)'")  # as tensorstore tells it
_LONGEST = 200  # characters of a reason that has no number
_REMEDIES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or have the quota raised",
    errno.EFBIG: "Have the limit on the size of files raised",
}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}  # whatever room there is


def number_of(error: BaseException) -> int | None:
    """The system's number for what went wrong, wherever in the chain of an error it stands."""
    for found in _chain(error, set()):
        if isinstance(found, OSError) and found.errno:
            return found.errno
        told = _IN_TEXT.search(str(found))
        if told:
            return int(told.group(1))
    return None


def not_written(who: str, path: Path, error: BaseException, *, needed: int = 0) -> str:
    """The message for a file or folder that could not be written, in one line.

    Args:
      who: begins the message.
      path: what was to be written; nothing of it is there any more.
      error: what was raised.
      needed: bytes at most; 0 where that is no matter of size.
    """
    number = number_of(error)
    if number is None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
    else:
        reason = f"{errno.errorcode.get(number, number)} ({os.strerror(number)})"
    room = f"it takes up to {size(needed)}, {_free(path)}" if needed else _free(path)
    if number in _FORBIDDEN:
        room = ""
    remedy = _REMEDIES.get(number or 0, "Give a folder that can be written")
    return message(who, f"{str(path)!r} could not be written, got {reason}", allowed=room, do=remedy)


def _free(path: Path) -> str:
    """How much is free where `path` was to be."""
    there = next((f for f in path.absolute().parents if f.is_dir()), Path("/"))
    try:
        if os.statvfs(there).f_files and not os.statvfs(there).f_favail:
            return "no more files can be made there"
        return f"{size(shutil.disk_usage(there).free)} are free"
    except OSError:
        return "how much is free is not known"


def _chain(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    """An error, what it groups, and what it came from."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    grouped = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    for inner in (*grouped, error.__cause__, error.__context__):
        if inner is not None:
            yield from _chain(inner, seen)
