"""How a kernel's tiles come from memory and go back: blocks, and tiles read by address."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..passes.passes import Pass
from . import _triton
from ._tiles import Tile, block_of, index_of, inner_axis, run_of, tile_for

_LANES, _SUBLANES = 128, 8  # of a TPU's tile of 32-bit numbers


def blocks_of(pass_: Pass, tile: Tile, target: str) -> "Blocks":
    """What a target wants: "tpu", "gpu" or "interpret"."""
    padded = any(n % size for n, size in zip(pass_.shape[-2:], tile, strict=True))
    if target == "gpu":
        return (_Masked if padded else _Free)(pass_, tile)
    return Blocks(pass_, tile)


def bytes_moved(pass_: Pass, target: str) -> tuple[int, int]:
    """Bytes that a kernel reads and writes: blocks with their padding, as often as the grid comes to them."""
    blocks = blocks_of(pass_, tile_for(pass_, target), target)
    sums = []
    for variables in (pass_.inputs, tuple(pass_.results.values())):
        sums.append(sum(_block_bytes(blocks, v, target) * _visits(blocks, v) for v in variables))
    return sums[0], sums[1]


def _visits(blocks: "Blocks", v: Any) -> int:
    """How often another block of an array is wanted."""
    index_map: Any = blocks.spec(v).index_map
    places = (index_map(*n) for n in itertools.product(*map(range, blocks.grid)))
    return sum(1 for _ in itertools.groupby(places))


def _block_bytes(blocks: "Blocks", v: Any, target: str) -> int:
    block: Any = blocks.spec(v).block_shape
    shape = [n for n in block if n is not None]
    size = blocks.pass_.types[v].dtype.itemsize
    if target == "tpu":
        unit = _SUBLANES * 4 // size
        shape[-2:] = [-(-shape[-2] // unit) * unit, -(-shape[-1] // _LANES) * _LANES]
    return math.prod(shape) * size


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
