"""Windows of the arrays of a pass: the boxes that a loop goes through, and a pass on one of them.

Windows divide no block: scales go with the codes that they scale.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._encoded import BLOCK, scale_shape
from .codecs import CodecCall
from .passes import Order


class Region(NamedTuple):
    """A box of an array that windows of one shape fill, divided along `axis` and all axes before it."""

    whole: tuple[int, ...]
    shape: tuple[int, ...]
    axis: int
    offset: int  # where it begins along the axis
    along: int  # windows along the axis

    @property
    def rounds(self) -> int:
        """How many windows there are."""
        return math.prod(self.whole[: self.axis]) * self.along

    def starts(self, n: Any) -> tuple[Any, ...]:
        """Where the n-th window begins."""
        found: list[Any] = [np.int32(0)] * len(self.whole)
        for axis in reversed(range(self.axis + 1)):
            count = self.along if axis == self.axis else self.whole[axis]
            place = n if axis == 0 else jax.lax.rem(n, np.int32(count))
            found[axis] = self.offset + place * self.shape[axis] if axis == self.axis else place
            n = n if axis == 0 else jax.lax.div(n, np.int32(count))
        return tuple(found)


def regions(shape: tuple[int, ...], most: int) -> list[Region]:
    """Boxes that fill an array with windows of up to `most` elements; two where its axis does not divide."""
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


@dataclasses.dataclass(frozen=True)
class WindowView:
    """A pass on a window: what it takes of arrays and scales, and how codecs work on that.

    Attributes:
      starts: where the window begins in the arrays of the pass, along each axis.
      size: its shape.
      bases: where the arrays of the pass begin in those that random bits are drawn for.
    """

    starts: tuple[Any, ...]
    size: tuple[int, ...]
    bases: tuple[Any, ...] = ()

    def shape_of(self, order: Order | None) -> tuple[int, ...]:
        """What the window has of an array, or of scales in an order."""
        return self.size if order is None else scale_shape(self.size, order)

    def taken(self, x: Any, order: Order | None) -> Any:
        """The window of an array or of scales."""
        return jax.lax.dynamic_slice(x, self._starts_of(order), self.shape_of(order))

    def put(self, x: Any, new: Any, order: Order | None) -> Any:
        """An array, or scales, with the window replaced."""
        return jax.lax.dynamic_update_slice(x, new, self._starts_of(order))

    def call(self, codec: CodecCall, operands: list[Any]) -> tuple[Any, ...]:
        """A codec on windows of its operands."""
        if not codec.writes:
            return codec.read(operands, codec.order)
        bases = self.bases or (np.int32(0),) * len(self.starts)
        starts = tuple(sum(n) for n in zip(operands[codec.arrays + 1 :], self.starts, bases, strict=True))
        return codec.write(operands, starts, codec.order, codec.whole)

    def handed(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        """The operands: where whole arrays are placed says nothing of a window."""
        del equation
        return operands

    def _starts_of(self, order: Order | None) -> list[Any]:
        """As unsigned numbers: others could be negative, and be counted from the end."""
        where = self.starts
        if order is not None:
            blocks = jax.lax.div(where[-1], np.int32(BLOCK))
            where = tuple((*where[:-1], blocks)[axis] for axis in order)
        return [jnp.asarray(n, jnp.uint32) for n in where]
