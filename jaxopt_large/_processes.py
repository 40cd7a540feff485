"""What several processes must agree on; with one process nothing is exchanged."""

import itertools
import threading
from collections.abc import Iterator

import jax
import numpy as np

_TURNS: dict[str, Iterator[int]] = {}  # topic -> turns of `on_any_later`, the same on all processes
_PATIENCE = 6 * 3600 * 1000  # milliseconds that the slowest process may take to write


def is_writer() -> bool:
    """Whether this is the process that names folders and writes what is not an array."""
    return jax.process_index() == 0


def on_any(flag: bool) -> bool:
    """Whether the flag is set on any process; all must call this, and wait here for each other."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def is_beside() -> bool:
    """Is this a thread beside the one that runs the devices?"""
    return threading.current_thread() is not threading.main_thread()


def on_any_later(flag: bool, about: str) -> bool:
    """`on_any` without the devices, for a thread beside a training step.

    Args:
      flag: of this process.
      about: the topic; each has one thread in each process.
    """
    if jax.process_count() == 1:
        return flag
    from orbax.checkpoint import multihost  # JAX has no public name for the service where processes meet

    client = multihost.get_jax_distributed_client()
    turn = next(_TURNS.setdefault(about, itertools.count()))
    topic = f"jaxopt_large/{about}/{turn}"
    client.key_value_set(f"{topic}/{jax.process_index()}", str(int(flag)))
    client.wait_at_barrier(f"{topic}/all", _PATIENCE)
    found = any(value == "1" for _, value in client.key_value_dir_get(f"{topic}/"))
    if is_writer() and turn:  # all have read what was said before this
        client.key_value_delete(f"jaxopt_large/{about}/{turn - 1}/")
    return found
