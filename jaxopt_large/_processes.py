"""What several processes must agree on; with one process nothing is exchanged."""

import jax
import numpy as np


def is_writer() -> bool:
    """Whether this is the process that names folders and writes what is not an array."""
    return jax.process_index() == 0


def on_any(flag: bool) -> bool:
    """Whether the flag is set on any process; all must call this, and wait here for each other."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
