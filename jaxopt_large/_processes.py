"""What several processes must agree on; with one process nothing is exchanged."""

import itertools

import jax
import numpy as np

from ._compat import coordination

_TURNS = itertools.count()  # of `on_any_later`; all processes take them in the same order
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


def on_any_later(flag: bool) -> bool:
    """`on_any` without the devices, for a thread beside a training step; for one thread at a time."""
    if jax.process_count() == 1:
        return flag
    client = coordination()
    topic = f"jaxopt_large/{next(_TURNS)}"
    client.key_value_set(f"{topic}/{jax.process_index()}", str(int(flag)))
    client.wait_at_barrier(f"{topic}/all", _PATIENCE)
    return any(value == "1" for _, value in client.key_value_dir_get(f"{topic}/"))
