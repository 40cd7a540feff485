"""Parts of arrays, encoded or not, that a loop takes out and puts back; blocks stay whole."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from .._encoded import BLOCK, Encoded, blocks_of, is_encoded


class Region(NamedTuple):
    """A box of an array that parts of one shape fill, cut along `axis` and all axes before it."""

    whole: tuple[int, ...]
    shape: tuple[int, ...]
    axis: int
    offset: int  # where it begins along the axis
    along: int  # parts along the axis

    @property
    def rounds(self) -> int:
        """How many parts there are."""
        return math.prod(self.whole[: self.axis]) * self.along

    def starts(self, n: Any) -> tuple[Any, ...]:
        """Where the n-th part begins."""
        found: list[Any] = [np.int32(0)] * len(self.whole)
        for axis in reversed(range(self.axis + 1)):
            count = self.along if axis == self.axis else self.whole[axis]
            place = n if axis == 0 else jax.lax.rem(n, np.int32(count))
            found[axis] = self.offset + place * self.shape[axis] if axis == self.axis else place
            n = n if axis == 0 else jax.lax.div(n, np.int32(count))
        return tuple(found)


def regions(shape: tuple[int, ...], most: int) -> list[Region]:
    """Boxes that fill an array with parts of up to `most` elements; two where its axis does not divide."""
    below = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    axis = next(axis for axis, size in enumerate(below) if size <= most)
    unit = BLOCK if axis == len(shape) - 1 else 1
    length = min(shape[axis], max(1, most // below[axis] // unit) * unit)
    divisors = (n for n in range(length, length // 2, -unit) if shape[axis] % n == 0)
    length = next(divisors, length)
    sizes = [(0, length, shape[axis] // length)]
    if rest := shape[axis] % length:
        sizes.append((shape[axis] - rest, rest, 1))
    return [
        Region(shape, (1,) * axis + (size,) + shape[axis + 1 :], axis, offset, along)
        for offset, size, along in sizes
    ]


def _scales_at(x: Encoded, starts: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    where, lengths = (*starts[:-1], starts[-1] // BLOCK), (*shape[:-1], blocks_of(shape[-1]))
    return tuple(where[axis] for axis in x.order), tuple(lengths[axis] for axis in x.order)


def part(x: Any, starts: Any, shape: tuple[int, ...]) -> Any:
    """A part of an array, encoded or not."""
    if not is_encoded(x):
        return None if x is None else jax.lax.dynamic_slice(x, starts, shape)
    codes, scales = part(x.codes, starts, shape), x.scales
    if scales is not None:
        scales = jax.lax.dynamic_slice(scales, *_scales_at(x, starts, shape))
    return Encoded(codes, scales, x.coding)


def with_part(x: Any, starts: Any, new: Any) -> Any:
    """An array with a part of it replaced."""
    if not is_encoded(x):
        return None if x is None else jax.lax.dynamic_update_slice(x, new, starts)
    codes, scales = with_part(x.codes, starts, new.codes), x.scales
    if scales is not None:
        at = _scales_at(x, starts, new.codes.shape)[0]
        scales = jax.lax.dynamic_update_slice(scales, new.scales, at)
    return Encoded(codes, scales, x.coding)
