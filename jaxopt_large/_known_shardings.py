"""Shardings of parameters that are being traced, where the caller knows what a tracer does not."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax

from ._axes import declared
from ._types import Params

_known: ContextVar[dict[Any, Any] | None] = ContextVar("known_shardings", default=None)


@contextlib.contextmanager
def known_shardings(shardings: dict[Any, Any]) -> Iterator[None]:
    """Declares key path -> sharding for the parameters that are traced inside the block."""
    with declared(_known, shardings):
        yield


def known_shardings_of(params: Params) -> list[Any]:
    """The declared sharding of each leaf, or None."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    known = _known.get() or {}
    return [known.get(path) for path in paths]
