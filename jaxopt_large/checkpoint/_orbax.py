"""orbax, kept to one error: beside the first it prints a traceback for every thread and write that fails."""

import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from .._writing import number_of

_QUIET = 0.2  # seconds without a late failure after which none is under way
_LOGGERS = ("absl", "asyncio")
_T = TypeVar("_T")


def orbax() -> Any:
    """The module; imported when it is needed: it takes a second, and belongs to an extra."""
    import orbax.checkpoint as ocp

    return ocp


def with_one_error(function: Callable[[], _T]) -> _T:
    """Calls a function that uses orbax; what fails in it is raised, once it is over, and not printed.

    Threads log the error that orbax raises. Writes that are under way when it does report to an event loop
    that is closed, and make folders anew: this waits for them.

    Raises:
      OSError: the system refused; nothing hangs on it.
      Exception: what the function raised else.
    """
    late = _Late.enter()
    try:
        try:
            return function()
        except Exception as error:
            late.wait()
            number = number_of(error)
            if number is None:
                raise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of coroutines that were never awaited
            gc.collect()
    finally:
        late.leave()
    raise OSError(number, os.strerror(number))


class _Late:
    """Keeps quiet and counts what reports to a closed event loop, for all who wait for that at a time."""

    _lock = threading.Lock()
    _shared: ClassVar[list["_Late"]] = []  # one, while it is used

    def __init__(self) -> None:
        self._count, self._users, self._before = 0, 0, sys.unraisablehook

    @classmethod
    def enter(cls) -> "_Late":
        with cls._lock:
            if not cls._shared:
                cls._shared.append(cls())
                sys.unraisablehook = cls._shared[0]._hook
                for name in _LOGGERS:
                    logging.getLogger(name).addFilter(_is_no_error)
            cls._shared[0]._users += 1
            return cls._shared[0]

    def wait(self) -> None:
        """Returns when nothing is under way any more, as far as one can tell."""
        seen = -1
        while seen < self._count:
            seen = self._count
            time.sleep(_QUIET)

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._shared.clear()
                sys.unraisablehook = self._before
                for name in _LOGGERS:
                    logging.getLogger(name).removeFilter(_is_no_error)

    def _hook(self, unraisable: Any) -> None:
        if "Event loop is closed" in str(unraisable.exc_value):
            self._count += 1
        else:
            self._before(unraisable)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR
