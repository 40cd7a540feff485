"""What surrounds a rule while it runs: mapped axes that divide its leaves.

Inside `shard_map` and `pmap` a wrapper may hand its inner rule one device's share of each leaf. It
announces the axis here; norms and decisions further down ask here, and know nothing of the wrapper.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax

from ._window import Window

_sharded_over: ContextVar[tuple[str, ...]] = ContextVar("sharded_over", default=())
_windows: ContextVar[Mapping[Any, Window]] = ContextVar("windows", default={})  # noqa: B039 - never mutated


@contextlib.contextmanager
def sharded_over(axis_name: str) -> Iterator[None]:
    """Declares that leaves inside the block are shares along `axis_name`."""
    with declared(_sharded_over, (*_sharded_over.get(), axis_name)):
        yield


@contextlib.contextmanager
def declared(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    """Sets a context variable inside the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextlib.contextmanager
def windows(known: Mapping[Any, Window]) -> Iterator[None]:
    """Declares key path -> window for parameters of which rules inside the block see a part."""
    with declared(_windows, known):
        yield


def window_of(path: Any) -> Window | None:
    """The declared window of the parameter on a key path; None where it is whole."""
    return _windows.get().get(path)


def reduction_axes(axis_name: str | tuple[str, ...] | None = None) -> tuple[str, ...]:
    """The announced axes and the given ones, each once."""
    given = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    return tuple(dict.fromkeys((*_sharded_over.get(), *given)))


def max_over_shards(tree: Any) -> Any:
    """The largest over all shares; `tree` itself when the leaves are whole."""
    axes = reduction_axes()
    return jax.lax.pmax(tree, axes) if axes else tree


def sum_over_shards(tree: Any, axis_name: str | tuple[str, ...] | None = None) -> Any:
    """The sum over all shares; `tree` itself when the leaves are whole."""
    axes = reduction_axes(axis_name)
    return jax.lax.psum(tree, axes) if axes else tree
