"""What a step may know of the whole leaf of which it has a share: its size, and sums along its axes.

Inside a mapped axis a device may have a share of each leaf. A stage that needs "axes" is written as for whole
leaves, with the functions below in the place of `x.size`, `jnp.sum` and broadcasting.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ._axes import declared
from ._window import Window

_part: ContextVar[Window | None] = ContextVar("part", default=None)


@contextlib.contextmanager
def part_of(window: Window | None) -> Iterator[None]:
    """Declares that the leaf at hand is this window of the whole one; None: it is whole."""
    with declared(_part, window):
        yield


def size_of(x: Array) -> int:
    """How many elements the leaf has of which `x` is here.

    >>> size_of(jnp.ones((2, 3)))
    6
    """
    window = _part.get()
    return x.size if window is None else math.prod(window.whole)


def shape_of(x: Array) -> tuple[int, ...]:
    """The shape of the leaf of which `x` is here."""
    window = _part.get()
    return x.shape if window is None else window.whole


def sum_along(x: Array, axes: Sequence[int]) -> Array:
    """The sum along axes of the whole leaf, in the shape of its other axes; of a part, its share of that sum.

    >>> sum_along(jnp.ones((2, 3)), (1,)).tolist()
    [3.0, 3.0]
    """
    return _reduced(x, axes, lambda x, axis: jnp.sum(x, axis=axis), lambda at, y: at.add(y, mode="drop"))


class Largest(NamedTuple):
    """In the place of a sum that a stage measures: a largest value, which goes over devices as such."""

    value: Array


def max_along(x: Array, axes: Sequence[int]) -> Largest:
    """The largest along axes of the whole leaf, of values that are not negative; see `sum_along`.

    >>> max_along(jnp.ones((2, 3)), (1,)).value.tolist()
    [1.0, 1.0]
    """

    def largest(x: Array, axis: Any) -> Array:
        return jnp.max(x, axis=axis, initial=0.0)

    return Largest(_reduced(x, axes, largest, lambda at, y: at.max(y, mode="drop")))


def _reduced(
    x: Array, axes: Sequence[int], reduce: Callable[[Array, Any], Array], put: Callable[[Any, Array], Array]
) -> Array:
    """A reduction along axes of the whole leaf: of a part, put where it belongs among zeros."""
    window = _part.get()
    if window is None:
        return reduce(x, tuple(axes))
    kept = _kept(window, axes)
    if not kept:
        return reduce(x, None)
    zeros = jnp.zeros(tuple(window.whole[d] for d in kept), x.dtype)
    if len(window.starts) == len(window.whole):
        places = [window.starts[d] + jnp.arange(x.shape[d]) for d in kept]
        return put(zeros.at[jnp.ix_(*places)], reduce(x, tuple(axes)))
    places = _coordinates(x, window)
    return put(zeros.at[tuple(places[d] for d in kept)], x.reshape(-1))


def along(values: Array, axes: Sequence[int], x: Array) -> Array:
    """What belongs to all axes of the whole leaf but some, beside each element of `x`.

    >>> along(jnp.array([1.0, 2.0]), (1,), jnp.ones((2, 3))).shape
    (2, 1)
    """
    window = _part.get()
    if window is None:
        return jnp.expand_dims(values, tuple(axes))
    kept = _kept(window, axes)
    if not kept:
        return values.reshape((1,) * x.ndim)
    if len(window.starts) == len(window.whole):
        places = [window.starts[d] + jnp.arange(x.shape[d]) for d in kept]
        return jnp.expand_dims(values.at[jnp.ix_(*places)].get(mode="clip"), tuple(axes))
    places = _coordinates(x, window)
    return values.at[tuple(places[d] for d in kept)].get(mode="clip").reshape(x.shape)


def _kept(window: Window, axes: Sequence[int]) -> list[int]:
    return [d for d in range(len(window.whole)) if d not in axes]


def _coordinates(x: Array, window: Window) -> list[Array]:
    """Where each element of a run of the flattened leaf lies; those behind its end lie outside."""
    index, found = window.starts[0] + jnp.arange(x.size), []
    for length in reversed(window.whole[1:]):
        found.append(index % length)
        index = index // length
    return [index, *reversed(found)]
