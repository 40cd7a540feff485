"""NVIDIA GPUs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..._encoded import BLOCK, blocks_of
from ...passes.passes import Pass
from . import _triton
from ._blocks import Blocks
from ._target import Target
from ._tiles import NoTileError, Tile, block_of, check_tileable, index_of

_ELEMENTS = 2**11  # of a tile, 16 of each array to a thread: with more, values do not stay in registers
_MOST_COLUMNS = 1024


class GPU(Target):
    name, platform = "gpu", "cuda"

    def why_not(self, pass_: Pass) -> str | None:
        return _triton.why_not(pass_)

    def tile(self, pass_: Pass) -> Tile:
        check_tileable(pass_)
        if any(pass_.types[v].dtype in (jnp.int4, jnp.uint4) for v in pass_.inputs):
            raise NoTileError("codes of 4 bits, which are packed in memory")
        rows, columns = (_power_of_two(n) for n in (pass_.shape[-2], blocks_of(pass_.shape[-1]) * BLOCK))
        columns = min(columns, _MOST_COLUMNS)
        return Tile(min(rows, max(1, _ELEMENTS // columns)), columns)

    def blocks(self, pass_: Pass, tile: Tile) -> Blocks:
        padded = any(n % size for n, size in zip(pass_.shape[-2:], tile, strict=True))
        return (_Masked if padded else _Free)(pass_, tile)

    def options(self) -> dict[str, Any]:
        return _triton.options()


def _power_of_two(n: int) -> int:
    return 1 << max(0, math.ceil(math.log2(n)))


class _Free(Blocks):
    """The same where any block will do."""

    inner = None

    @property
    def run(self) -> Tile:
        return self.tile


class _Masked(_Free):
    """Tiles that are read and written by address, with a mask for what lies beyond an array."""

    def spec(self, v: Any) -> pl.BlockSpec:
        shape = self.pass_.types[v].shape
        return pl.BlockSpec(shape, lambda *index: (0,) * len(shape))

    def load(self, ref: Any, v: Any, index: list[Any], *run: Any) -> Any:
        return _triton.load(ref, *self._at(v, index))

    def store(self, ref: Any, v: Any, index: list[Any], x: Any, *run: Any) -> None:
        _triton.store(ref, *self._at(v, index), x)

    def _at(self, v: Any, index: list[Any]) -> tuple[tuple[Any, ...], Any]:
        order, rank, shape = self.pass_.kinds[v], len(self.pass_.shape), self.pass_.types[v].shape
        sizes, places = block_of(order, rank, self.tile), index_of(order, tuple(index))
        where = tuple(
            place if size is None else pl.ds(place * size, size)
            for place, size in zip(places, sizes, strict=True)
        )
        boxed = [
            (n, size, place) for n, size, place in zip(shape, sizes, places, strict=True) if size is not None
        ]
        box = tuple(size for _, size, _ in boxed)
        mask = jnp.ones(box, jnp.bool_)
        for axis, (n, size, place) in enumerate(boxed):
            mask &= jax.lax.broadcasted_iota(jnp.int32, box, axis) + place * size < n
        return where, mask
