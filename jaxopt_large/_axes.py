"""Which mapped axes the leaves at hand are sharded over, so that a reduction is over whole leaves.

Inside `shard_map` and `pmap` a wrapper may hand its inner rule one device's share of each leaf. It
announces the axis here; norms and decisions further down ask here, and know nothing of the wrapper.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

_sharded_over: ContextVar[tuple[str, ...]] = ContextVar("sharded_over", default=())


@contextlib.contextmanager
def sharded_over(axis_name: str) -> Iterator[None]:
    """Declares that leaves inside the block are shares along `axis_name`."""
    token = _sharded_over.set((*_sharded_over.get(), axis_name))
    try:
        yield
    finally:
        _sharded_over.reset(token)


def reduction_axes(axis_name: str | tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The announced axes and the given ones, each once."""
    given = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    return tuple(dict.fromkeys((*_sharded_over.get(), *given)))


def sum_over_shards(tree: Any, axis_name: str | tuple[str, ...] | None = None) -> Any:
    """The sum over all shares; `tree` itself when the leaves are whole."""
    axes = reduction_axes(axis_name)
    return jax.lax.psum(tree, axes) if axes else tree
