"""The shape of a kernel's tiles, and where blocks are, whatever the chip."""

from typing import Any, NamedTuple

from ..._encoded import BLOCK
from ...passes.passes import Order, Pass


class Tile(NamedTuple):
    """The last two axes of a tile; all others are taken one by one.

    Attributes:
      rows: along the last axis but one; it may be more than the array has.
      columns: along the last, whole blocks; likewise.
    """

    rows: int
    columns: int


class NoTileError(Exception):
    """No tile suits a chip."""


def check_tileable(pass_: Pass) -> None:
    """Raises for what no chip's kernels take.

    Raises:
      NoTileError: it says why.
    """
    if len(pass_.shape) < 2:
        raise NoTileError("fewer than two axes")
    if any(pass_.types[v].dtype.itemsize == 8 for v in (*pass_.inputs, *pass_.scalars)):
        raise NoTileError("64-bit numbers")


def evenly(length: int, unit: int, most: int) -> int:
    """The length of parts of equal size, in units, of which up to `most` fit in one."""
    units = -(-length // unit)
    return -(-units // -(-units // most)) * unit


def run_of(tile: Tile) -> Tile:
    """The part of a tile that a kernel's code is written for; it loops over them.

    Mosaic unrolls what is done to an array, register by register: with whole tiles one kernel takes seconds
    to compile. A run is one block wide: blocks side by side would need an axis of their own.
    """
    return Tile(min(tile.rows, BLOCK), BLOCK)


def runs_at_once(run: Tile) -> int:
    """How many short runs the code has side by side, so that one computes while another waits."""
    return max(1, min(8, BLOCK // max(8, run.rows)))


def inner_axis(pass_: Pass) -> int | None:
    """The leading axis that is the last but one of the scales: TPUs take it whole.

    A kernel comes by its indices one after another, and finds all of its scales in one block.
    """
    leading = len(pass_.shape) - 2
    found = {order[-2] for order in pass_.kinds.values() if order is not None}
    return next((axis for axis in found if axis < leading and pass_.shape[axis] != 1), None)


def block_of(order: Order | None, rank: int, tile: Tile) -> tuple[Any, ...]:
    """A block's shape of arrays, or of scales in an order; None: one by one."""
    sizes: list[Any] = [None] * (rank - 2) + [
        tile.rows,
        tile.columns if order is None else tile.columns // BLOCK,
    ]
    return tuple(sizes if order is None else (sizes[axis] for axis in order))


def index_of(order: Order | None, index: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where a block is, given a program's index."""
    return index if order is None else tuple(index[axis] for axis in order)
