"""How one array is divided into equal shares along one dimension."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array


@dataclasses.dataclass(frozen=True)
class Cut:
    """One dimension, zero-padded at its end to a length that divides.

    A scalar counts as an array of shape (1,).
    """

    dim: int
    size: int  # the dimension's length
    padded: int  # the length that divides

    def pad(self, x: Array) -> Array:
        x = x.reshape(1) if x.ndim == 0 else x
        if self.padded == self.size:
            return x
        widths = [(0, 0)] * x.ndim
        widths[self.dim] = (0, self.padded - self.size)
        return jnp.pad(x, widths)

    def unpad(self, x: Array, shape: tuple[int, ...]) -> Array:
        if self.padded != self.size:
            x = jax.lax.slice_in_dim(x, 0, self.size, axis=self.dim)
        return x.reshape(shape)

    def padded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        shape = shape or (1,)
        return (*shape[: self.dim], self.padded, *shape[self.dim + 1 :])

    def share_shape(self, shape: tuple[int, ...], shares: int) -> tuple[int, ...]:
        shape = shape or (1,)
        return (*shape[: self.dim], self.padded // shares, *shape[self.dim + 1 :])


def choose_cut(
    shape: tuple[int, ...], shares: int, spec: PartitionSpec | None = None, mesh: Any = None
) -> Cut | None:
    """The dimension along which to divide an array of `shape` into `shares`.

    Preferred, in this order: no padding (else the least), a dimension that no mesh axis divides yet,
    one that is not the last (so that blocks of the last axis stay whole), the longest (so that it is
    not the layer axis of a stack, where compilers lose the reduce-scatter).

    Returns:
      None for an array without elements.
    """
    if 0 in shape:
        return None
    shape = shape or (1,)
    best = None
    for dim, size in enumerate(shape):
        divided = shards_of(spec, dim, mesh)
        unit = shares * divided
        padded = math.ceil(size / unit) * unit
        rank = (padded / size, divided > 1, len(shape) > 1 and dim == len(shape) - 1, -size)
        if best is None or rank < best[0]:
            best = (rank, Cut(dim, size, padded))
    return best[1] if best else None


def entry(spec: PartitionSpec | None, dim: int) -> tuple[str, ...]:
    """The mesh axes that divide dimension `dim`."""
    if spec is None or dim >= len(spec) or spec[dim] is None:
        return ()
    names = spec[dim]
    return names if isinstance(names, tuple) else (names,)


def shards_of(spec: PartitionSpec | None, dim: int, mesh: Any) -> int:
    return math.prod(mesh.shape[name] for name in entry(spec, dim))


def cut_spec(spec: PartitionSpec, cut: Cut, axes: Sequence[str], rank: int) -> PartitionSpec:
    """`spec` with `axes` added to the cut dimension, minor to the axes already there."""
    entries = [entry(spec, dim) for dim in range(max(rank, 1))]
    entries[cut.dim] = (*entries[cut.dim], *axes)
    return normal_spec(entries)


def normal_spec(entries: Sequence[tuple[str, ...]]) -> PartitionSpec:
    """The spelling that compiled functions return: no tuples of one, no trailing None."""
    short = [None if not e else e[0] if len(e) == 1 else tuple(e) for e in entries]
    while short and short[-1] is None:
        short.pop()
    return PartitionSpec(*short)
