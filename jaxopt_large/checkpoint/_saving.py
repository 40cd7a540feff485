"""Writing beside the training step: one checkpoint at a time, in a thread of its own."""

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NICE = 15  # of threads that write, where the system knows such: a step that has all CPUs loses little
_WRITERS = "ts_pool_worker"  # tensorstore's threads, which write for whoever asks


class Saving:
    """A checkpoint that is being written in the background.

    Attributes:
      path: where it will be.
    """

    def __init__(self, path: str, work: Callable[[], None]):
        self.path = path
        self._work: Any = work
        self._error: BaseException | None = None
        self._over = threading.Event()  # a thread that somebody was interrupted in joining counts as ended
        self._thread = threading.Thread(target=self._run, name=f"saving {path}")
        self._thread.start()

    def _run(self) -> None:
        _step_back()
        try:
            self._work()
        except BaseException as error:  # told to whoever waits
            self._error = error
        finally:
            self._work = None  # and the arrays with it
            self._over.set()

    @property
    def done(self) -> bool:
        """Is it over, written or not?"""
        return self._over.is_set()

    def wait(self) -> None:
        """Returns when the checkpoint is whole and on the disk.

        Raises:
          CheckpointError: it could not be written, for the reason that `save` gives; raised once.
        """
        self.wait_for_end()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait_for_end(self) -> None:
        """Returns when it is over, written or not."""
        self._over.wait()


class _Last:
    """The last checkpoint that was begun."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._saving: Saving | None = None
        # before the interpreter lets no thread begin another, as orbax's do
        register = getattr(threading, "_register_atexit", None)
        if register is not None:
            register(self._at_exit)

    def begin(self, path: str, work: Callable[[], None]) -> Saving:
        with self._lock:
            self.wait()
            saving = self._saving = Saving(path, work)
            return saving

    def wait(self) -> None:
        with self._lock:
            if self._saving is not None:
                self._saving.wait_for_end()  # if that is interrupted, it is still the last
                saving, self._saving = self._saving, None
                saving.wait()

    def wait_for(self, path: str) -> None:
        saving = self._saving
        if saving is not None and saving.path == path:
            saving.wait_for_end()

    def _at_exit(self) -> None:
        try:
            self.wait()
        except Exception as error:  # nobody else will be told
            sys.stderr.write(f"{error}\n")


def _step_back() -> None:
    """Lowers the priority of this thread, of those that it begins, and of those that write for it."""
    _lower(threading.get_native_id())
    tasks = Path("/proc/self/task")  # Linux tells of its threads, each of which has a priority
    for task in tasks.iterdir() if tasks.is_dir() else ():
        with suppress(OSError):  # it has ended
            if (task / "comm").read_text().strip() == _WRITERS:
                _lower(int(task.name))


def _lower(thread: int) -> None:
    with suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, thread, _NICE)


_last = _Last()
begin, wait_for_last, wait_for = _last.begin, _last.wait, _last.wait_for


def copied(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays in the host's memory, which nobody changes or donates; each where its devices are."""
    return {name: _copied(x) for name, x in arrays.items()}


def _copied(x: Any) -> Any:
    if not isinstance(x, jax.Array):
        return np.array(x)
    if x.is_fully_addressable and _local_bytes(x) > x.nbytes:  # one of its replicas is enough
        whole = np.empty(x.shape, x.dtype)
        for shard in x.addressable_shards:
            if shard.replica_id == 0:
                whole[shard.index] = np.asarray(shard.data)
        return whole
    if next(iter(x.sharding.device_set)).platform == "cpu":
        return jax.block_until_ready(jnp.copy(x))
    return jax.block_until_ready(
        jax.device_put(x, x.sharding.with_memory_kind("pinned_host"), may_alias=False)
    )


def _local_bytes(x: Any) -> int:
    """Of this process's devices, replicas counted."""
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize * len(x.sharding.addressable_devices)


def parted(arrays: Mapping[str, Any], room: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays that are written at once, and those that are copied and written later: as many as have room.

    Args:
      arrays: by name.
      room: bytes of the host's memory for copies, of one process; None: for all.
    """
    now, later = {}, {}
    for name, x in arrays.items():
        share = x.nbytes if not isinstance(x, jax.Array) or x.is_fully_addressable else _local_bytes(x)
        if room is None or share <= room:
            later[name] = x
            room = None if room is None else room - share
        else:
            now[name] = x
    return now, later
