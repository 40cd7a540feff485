"""How a kernel's tiles come from memory and go back: blocks, and tiles read by address."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ...passes.passes import Pass
from ._tiles import Tile, block_of, index_of, inner_axis, run_of


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Tiles that come and go by themselves; what lies beyond an array is not written."""

    pass_: Pass
    tile: Tile

    @property
    def run(self) -> Tile:
        """What one round of a kernel's loop over a tile takes."""
        return run_of(self.tile)

    @functools.cached_property
    def inner(self) -> int | None:
        return inner_axis(self.pass_)

    @functools.cached_property
    def axes(self) -> list[int]:
        """The array's axes in the order in which the grid goes through them, the slowest first."""
        return sorted(range(len(self.pass_.shape)), key=lambda axis: axis == self.inner)

    @functools.cached_property
    def grid(self) -> tuple[int, ...]:
        shape = self.pass_.shape
        counts = (*shape[:-2], pl.cdiv(shape[-2], self.tile.rows), pl.cdiv(shape[-1], self.tile.columns))
        return tuple(counts[axis] for axis in self.axes)

    def spec(self, v: Any) -> pl.BlockSpec:
        order, rank = self.pass_.kinds[v], len(self.pass_.shape)
        block = list(block_of(order, rank, self.tile))
        # where the last axis but one of scales is a leading axis of the array, it comes whole, and is indexed
        # inside: of the last two axes of a block chips want all, or multiples of their own tiles
        place = None if order is None or self.inner is None else order.index(self.inner)
        if place is not None:
            block[place] = self.pass_.types[v].shape[place]

        def index_map(*grid: Any) -> tuple[Any, ...]:
            index = list(index_of(order, tuple(grid[self.axes.index(axis)] for axis in range(rank))))
            if place is not None:
                index[place] = 0
            return tuple(index)

        return pl.BlockSpec(tuple(block), index_map)

    def load(self, ref: Any, v: Any, index: list[Any], *run: Any) -> Any:
        """A block, or the run of it with this row and column among all."""
        x = ref[self._within(v, index, *run)]
        if not run or self.pass_.kinds[v] is None:
            return x
        mine = self._mine(v, x.shape, run)
        return jnp.sum(
            jnp.where(mine, x, 0), axis=self._blocks_axis(v), keepdims=True
        )  # exact: one and zeros

    def store(self, ref: Any, v: Any, index: list[Any], x: Any, *run: Any) -> None:
        place = self._within(v, index, *run)
        if run and self.pass_.kinds[v] is not None:
            old = ref[place]
            x = jnp.where(self._mine(v, old.shape, run), x, old)
        ref[place] = x

    def _mine(self, v: Any, shape: tuple[int, ...], run: Any) -> Any:
        """Which scales of a block are a run's: chips find no single one by an address."""
        return jax.lax.broadcasted_iota(jnp.int32, shape, self._blocks_axis(v)) == run[1]

    def _blocks_axis(self, v: Any) -> int:
        """Of the last two axes, in the order of scales, the one along which a row's blocks are."""
        order, rank = self.pass_.kinds[v] or (), len(self.pass_.shape)
        return int(order.index(rank - 1) > order.index(rank - 2))

    def _within(self, v: Any, index: list[Any], *run: Any) -> Any:
        """What of a block is a run's, and of scales what belongs to one index of the inner axis."""
        order, rank = self.pass_.kinds[v], len(self.pass_.shape)
        parts: list[Any] = [None] * (rank - 2) + [slice(None)] * 2
        for n, size in enumerate(self.run if order is None else self.run[:1]):
            if run and size != self.tile[n]:
                parts[n - 2] = pl.ds(pl.multiple_of(run[n] * size, size), size)
        if order is not None and self.inner is not None:
            parts[self.inner] = index[self.inner]
        return tuple(parts[axis] for axis in order or range(rank) if parts[axis] is not None)
