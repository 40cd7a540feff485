"""The shape of a kernel's tiles: what chips take, and what fits in their fast memory."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from .._encoded import BLOCK, blocks_of
from ..passes.passes import Order, Pass

TPU_LIMIT = 32 * 2**20  # bytes of fast memory that a kernel may take; v5e and v6e have 128 MiB, v5p 95
_TPU_BUDGET = 20 * 2**20  # of these, for tiles; what is made of a run needs little besides
_MOST_ROWS = 512  # of a tile: more would only make the first wait for its arrays longer
_GPU_ELEMENTS = 2**11  # of a tile, 16 of each array to a thread: with more, values do not stay in registers


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


def tile_for(pass_: Pass, target: str) -> Tile:
    """A tile for the arrays of a pass.

    Args:
      pass_: what the kernel is to compute.
      target: "tpu", "gpu", or "interpret" for none.

    Raises:
      NoTileError: none will do; it says why.
    """
    if len(pass_.shape) < 2:
        raise NoTileError("fewer than two axes")
    if any(pass_.types[v].dtype.itemsize == 8 for v in (*pass_.inputs, *pass_.scalars)):
        raise NoTileError("64-bit numbers")
    if target == "gpu":
        if any(pass_.types[v].dtype in (jnp.int4, jnp.uint4) for v in pass_.inputs):
            raise NoTileError("codes of 4 bits, which are packed in memory")
        rows, columns = (_power_of_two(n) for n in (pass_.shape[-2], blocks_of(pass_.shape[-1]) * BLOCK))
        columns = min(columns, 1024)
        return Tile(min(rows, max(1, _GPU_ELEMENTS // columns)), columns)
    orders = {order for order in pass_.kinds.values() if order is not None}
    leading = len(pass_.shape) - 2
    if any(pass_.shape[order[-1]] != 1 and order[-1] < leading for order in orders):
        raise NoTileError("scales whose longest axis is not one of the last two")
    rows, columns = pass_.shape[-2], blocks_of(pass_.shape[-1]) * BLOCK
    by_block = any(order.index(leading) > order.index(leading + 1) for order in orders)
    by_row = any(order.index(leading) < order.index(leading + 1) for order in orders)
    row_unit, column_unit = (BLOCK if by_block else 32), (BLOCK * BLOCK if by_row else 8 * BLOCK)
    least = Tile(min(rows, row_unit), min(columns, column_unit))
    size = _bytes(pass_, least)
    if size > _TPU_BUDGET:
        raise NoTileError(f"a tile of {least.rows} x {least.columns} takes {size} bytes")
    wide = least._replace(columns=min(columns, _evenly(columns, column_unit, _TPU_BUDGET // size)))
    if rows <= row_unit or by_row or inner_axis(pass_) is not None:  # which find no part of a block's lanes
        return wide
    most = min(_MOST_ROWS // row_unit, _TPU_BUDGET // _bytes(pass_, wide))
    return wide._replace(rows=_evenly(rows, row_unit, most))


def _evenly(length: int, unit: int, most: int) -> int:
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


def _bytes(pass_: Pass, tile: Tile) -> int:
    """What a tile takes in fast memory: each array twice, as the next is on its way."""
    arrays = [pass_.types[v] for v in (*pass_.inputs, *pass_.results.values()) if pass_.kinds[v] is None]
    each = 2 * sum(kind.dtype.itemsize for kind in arrays)
    return tile.rows * tile.columns * each


def _power_of_two(n: int) -> int:
    return 1 << max(0, math.ceil(math.log2(n)))


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
