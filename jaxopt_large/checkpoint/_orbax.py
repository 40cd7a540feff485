"""orbax, kept to one error: beside the first it prints a traceback for every thread and write that fails."""

import contextlib
import gc
import inspect
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import jax

from .._processes import is_beside
from .._writing import number_of

_AT_ONCE = 2**27  # bytes on their way to a disk; from it an eighth of that, which is in memory twice
_FILE = 2**26  # bytes of a file, up to which what is to be written waits in memory
_CHUNKS = 32  # of a device's share
_SMALLEST_CHUNK, _LARGEST_CHUNK = 2**20, 2**24  # bytes; of smaller ones orbax warns
_QUIET = 0.2  # seconds without a late failure after which none is under way
_LOGGERS = ("absl", "asyncio")
_NOISY = ("orbax", "asyncio", "tensorstore")  # in the path of what logs
_T = TypeVar("_T")


def orbax() -> Any:
    """The module; imported when it is needed: it takes a second, and belongs to an extra."""
    import orbax.checkpoint as ocp

    return ocp


def checkpointer(largest: int) -> Any:
    """orbax's for arrays of some tree; to be closed.

    What is read and written at a time is bounded, and written as it is: compression takes longer than a disk
    does, and saves a twelfth of what moments take.

    Beside a training step processes wait for each other without the devices.

    Args:
      largest: bytes of the largest array.
    """
    ocp = orbax()
    options: dict[str, Any] = {}
    if is_beside() and jax.process_count() > 1:
        everyone = set(range(jax.process_count()))
        options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(active_processes=everyone)
    make = ocp.PyTreeCheckpointHandler
    if "use_compression" in inspect.signature(make).parameters:
        options["use_compression"] = False
    out, back = (max(largest + largest // 8, least) / 1e9 for least in (_AT_ONCE, _AT_ONCE // 8))
    handler = make(save_concurrent_gb=out, restore_concurrent_gb=back, **options)
    more = {k: v for k, v in options.items() if k == "multiprocessing_options"}
    return contextlib.closing(ocp.Checkpointer(handler, **more))


def save_arguments(arrays: Mapping[str, Any]) -> Any:
    """What orbax is told to save."""
    ocp = orbax()
    each = {name: ocp.SaveArgs(chunk_byte_size=_chunk(x)) for name, x in arrays.items()}
    return ocp.args.PyTreeSave(dict(arrays), save_args=each, ocdbt_target_data_file_size=_FILE)


def restore_arguments(targets: Mapping[str, Any]) -> Any:
    """What orbax is told to restore: arrays for shapes, NumPy's for NumPy's."""
    ocp = orbax()
    each = ocp.checkpoint_utils.construct_restore_args(dict(targets))
    return ocp.args.PyTreeRestore(dict(targets), restore_args=each)


def chunks(reader: Any, folder: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of what is read together of each array; empty where orbax does not say."""
    found = reader.metadata(folder)
    tree = getattr(found, "item_metadata", found)
    stored = {name: getattr(x, "storage", None) for name, x in dict(getattr(tree, "tree", tree)).items()}
    return {name: tuple(x.chunk_shape) for name, x in stored.items() if getattr(x, "chunk_shape", None)}


def _chunk(x: Any) -> int | None:
    """Bytes that are read together: a small part of what a device has, whose neighbors may go elsewhere."""
    shape = x.sharding.shard_shape(x.shape) if isinstance(x, jax.Array) else x.shape
    share = math.prod(shape) * x.dtype.itemsize
    return max(min(share // _CHUNKS, _LARGEST_CHUNK), _SMALLEST_CHUNK) if share > _SMALLEST_CHUNK else None


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
    return record.levelno < logging.ERROR or not any(name in record.pathname for name in _NOISY)
