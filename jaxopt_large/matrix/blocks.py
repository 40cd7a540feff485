"""Matrices cut into blocks with factors of their own: those of whole dimensions would be too large."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

_DEFAULT = 512  # of one side of a block: larger factors cost more than they bring
_SMALLEST = 4  # of what was asked for: a dimension with no larger divisor has no factor


class Blocks(NamedTuple):
    """How a matrix is cut.

    Attributes:
      rows: of a block.
      columns: of a block.
      down: how many blocks there are along the rows.
      across: along the columns.
      left: has a block a factor for its rows?
      right: and for its columns?
    """

    rows: int
    columns: int
    down: int
    across: int
    left: bool
    right: bool

    @property
    def total(self) -> int:
        """Blocks of a matrix."""
        return self.down * self.across

    def factor(self, side: str) -> tuple[int, int, int]:
        """The shape of a matrix' factors on one side, "left" or "right"; of a side without, of numbers."""
        sizes = {"left": self.rows if self.left else 1, "right": self.columns if self.right else 1}
        return (self.total, sizes[side], sizes[side])

    def split(self, x: Array) -> Array:
        """[k, m, n] -> [k, blocks, rows, columns]."""
        apart = x.reshape(-1, self.down, self.rows, self.across, self.columns)
        return apart.transpose(0, 1, 3, 2, 4).reshape(-1, self.total, self.rows, self.columns)

    def joined(self, x: Array) -> Array:
        """The inverse."""
        apart = x.reshape(-1, self.down, self.across, self.rows, self.columns).transpose(0, 1, 3, 2, 4)
        return apart.reshape(-1, self.down * self.rows, self.across * self.columns)


def stacked(x: Array) -> Array:
    """[k, blocks, ...] -> [k * blocks, ...]."""
    return x.reshape(-1, *x.shape[2:])


def all_finite(x: Array) -> Bool[Array, " k"]:
    """Of each of stacked blocks."""
    return jnp.all(jnp.isfinite(x), axis=(1, 2))


def chosen(which: Bool[Array, " k"], one: Any, other: Any) -> Any:
    """Trees of stacks: of those in `which` from one, of the others from the other."""
    return jax.tree.map(lambda x, y: jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), x, y), one, other)


def parts_of(kept: Any, kind: Any) -> Any:
    """The fields of a state that a NamedTuple names, as stacks of blocks."""
    return kind(*(stacked(getattr(kept, name)) for name in kind._fields))


def with_parts(kept: Any, parts: Any) -> Any:
    """The inverse: the state, with other parts."""
    return kept._replace(
        **{name: x.reshape(getattr(kept, name).shape) for name, x in parts._asdict().items()}
    )


def misfit(sizes: Sequence[tuple[int, int]], block: int | None) -> str:
    """Why none of some matrices, [rows, columns], can be cut into blocks of a size; "" if one can."""
    longest = max((max(size) for size in sizes), default=0)
    if block is None or block <= longest or not sizes:
        return ""
    return f"block is larger than every dimension, got {block}, and the longest is {longest}"


def blocks_of(rows: int, columns: int, block: int | None) -> Blocks:
    """The blocks of a matrix.

    Args:
      rows: of the matrix.
      columns: of the matrix.
      block: the longest side of a block; None for 512.

    >>> blocks_of(768, 3072, 256)
    Blocks(rows=256, columns=256, down=3, across=12, left=True, right=True)
    >>> blocks_of(509, 64, 256)  # a prime: its rows have no factor
    Blocks(rows=509, columns=64, down=1, across=1, left=False, right=True)
    """
    down, across = (_parts(size, block or _DEFAULT) for size in (rows, columns))
    left, right = down > 0, across > 0
    down, across = max(down, 1), max(across, 1)
    return Blocks(rows // down, columns // across, down, across, left, right)


def _parts(size: int, block: int) -> int:
    """Into how many equal parts of at most `block`; 0 where they would be too small."""
    if size <= block:
        return 1
    parts = next(k for k in range(-(-size // block), size + 1) if size % k == 0)
    return parts if size // parts * _SMALLEST >= block else 0
