"""TPUs, by Mosaic."""

import itertools
import math
from typing import Any

from jax.experimental import pallas as pl

from ..._encoded import BLOCK, blocks_of
from ...passes.passes import Pass
from ._blocks import Blocks
from ._target import Target
from ._tiles import NoTileError, Tile, check_tileable, evenly, inner_axis

_LIMIT = 32 * 2**20  # bytes of fast memory that a kernel may take; v5e and v6e have 128 MiB, v5p 95
_BUDGET = 20 * 2**20  # of these, for tiles; what is made of a run needs little besides
_MOST_ROWS = 512  # of a tile: more would only make the first wait for its arrays longer
_LANES, _SUBLANES = 128, 8  # of a chip's tile of 32-bit numbers


class TPU(Target):
    name, platform = "tpu", "tpu"

    def tile(self, pass_: Pass) -> Tile:
        check_tileable(pass_)
        orders = {order for order in pass_.kinds.values() if order is not None}
        leading = len(pass_.shape) - 2
        if any(pass_.shape[order[-1]] != 1 and order[-1] < leading for order in orders):
            raise NoTileError("scales whose longest axis is not one of the last two")
        rows, columns = pass_.shape[-2], blocks_of(pass_.shape[-1]) * BLOCK
        by_block = any(order.index(leading) > order.index(leading + 1) for order in orders)
        by_row = any(order.index(leading) < order.index(leading + 1) for order in orders)
        # scales lie in chip tiles too: a kernel's tile has to hold whole ones of them, along their last axis
        row_unit, column_unit = (BLOCK if by_block else 32), (BLOCK * BLOCK if by_row else 8 * BLOCK)
        least = Tile(min(rows, row_unit), min(columns, column_unit))
        size = _bytes(pass_, least)
        if size > _BUDGET:
            raise NoTileError(f"a tile of {least.rows} x {least.columns} takes {size} bytes")
        wide = least._replace(columns=min(columns, evenly(columns, column_unit, _BUDGET // size)))
        if (
            rows <= row_unit or by_row or inner_axis(pass_) is not None
        ):  # which find no part of a block's lanes
            return wide
        most = min(_MOST_ROWS // row_unit, _BUDGET // _bytes(pass_, wide))
        return wide._replace(rows=evenly(rows, row_unit, most))

    def numbers_spec(self, x: Any) -> pl.BlockSpec:
        from jax.experimental.pallas import tpu as pltpu

        return pl.BlockSpec(memory_space=pltpu.SMEM)

    def options(self) -> dict[str, Any]:
        from jax.experimental.pallas import tpu as pltpu

        return {"compiler_params": pltpu.CompilerParams(vmem_limit_bytes=_LIMIT)}

    def moved(self, pass_: Pass) -> tuple[int, int]:
        """Blocks with their padding, as often as the grid comes to them."""
        blocks = self.blocks(pass_, self.tile(pass_))
        read, written = (
            sum(_block_bytes(blocks, v) * _visits(blocks, v) for v in variables)
            for variables in (pass_.inputs, pass_.results.values())
        )
        return read, written


def _bytes(pass_: Pass, tile: Tile) -> int:
    """What a tile takes in fast memory: each array twice, as the next is on its way."""
    arrays = [pass_.types[v] for v in (*pass_.inputs, *pass_.results.values()) if pass_.kinds[v] is None]
    each = 2 * sum(kind.dtype.itemsize for kind in arrays)
    return tile.rows * tile.columns * each


def _visits(blocks: Blocks, v: Any) -> int:
    """How often another block of an array is wanted."""
    index_map: Any = blocks.spec(v).index_map
    places = (index_map(*n) for n in itertools.product(*map(range, blocks.grid)))
    return sum(1 for _ in itertools.groupby(places))


def _block_bytes(blocks: Blocks, v: Any) -> int:
    block: Any = blocks.spec(v).block_shape
    shape = [n for n in block if n is not None]
    size = blocks.pass_.types[v].dtype.itemsize
    unit = _SUBLANES * 4 // size
    shape[-2:] = [-(-shape[-2] // unit) * unit, -(-shape[-1] // _LANES) * _LANES]
    return math.prod(shape) * size
