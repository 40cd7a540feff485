"""One process at a time in a folder: a lock that the system holds, and drops when the process dies."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from pathlib import Path

from .._errors import message
from .._writing import not_written
from ._errors import RunError, RunWriteError

NAME = ".lock"

_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}  # over NFS it is a lock of fcntl, with its errors
_MISSING = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
_PATIENCE = 0.2  # seconds in which a process that has the lock writes who it is


class Lock:
    """The file `.lock` in a folder, locked while a run is under way, and then removed."""

    def __init__(self, folder: Path):
        self._folder, self._file = folder, folder / NAME
        self._descriptor: int | None = None

    def take(self) -> str:
        """Takes the lock, which a killed process does not hold any more.

        Returns:
          What is to be said to the user: that there are no locks on this file system; else nothing.

        Raises:
          RunError: another process has it; the message says which.
          RunWriteError: the folder cannot be written.
        """
        while self._descriptor is None:
            try:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            except OSError as error:
                raise RunWriteError(not_written("train", self._folder, error)) from None
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = self._holder(descriptor) if error.errno in _HELD else ""
                os.close(descriptor)
                if holder:
                    raise RunError(self._refusal(holder)) from None
                with contextlib.suppress(OSError):
                    self._file.unlink()
                if error.errno not in _MISSING:
                    raise RunWriteError(not_written("train", self._folder, error)) from None
                return message(
                    "train",
                    f"{str(self._folder)!r} has no locks, got {errno.errorcode.get(error.errno or 0)}",
                    do="See to it that no other process runs it",
                )
            if self._is(descriptor):
                self._descriptor = descriptor
            else:  # the process before has removed the file after it was opened here
                os.close(descriptor)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on host {socket.gethostname()}\n".encode(), 0)
        return ""

    def release(self) -> None:
        """Removes the file and drops the lock, if it was taken."""
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            self._file.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _is(self, descriptor: int) -> bool:
        """Whether the file that is open is the one that has the name."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(descriptor), self._file.stat())
        return False

    def _holder(self, descriptor: int) -> str:
        """Who has the lock, as far as it has said so."""
        for _ in range(10):
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
            if holder:
                return holder
            time.sleep(_PATIENCE / 10)
        return "another process"

    def _refusal(self, holder: str) -> str:
        wrong = f"{str(self._folder)!r} is being run by {holder}"
        return message("train", wrong, do="Wait for it or stop it, or take another name")
