"""How one array is divided into equal shares: along one dimension, or flattened."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from .._encoded import BLOCK
from .._partition import entries, normal_spec, shards_of
from .._window import Window

_SHORTEST = 8  # elements of a share along its cut: for 4 the TPU compiler makes no reduce-scatter
_MOST_PADDING = 0.01  # of a leaf; a dimension that needs more is not cut, the leaf is flattened


@dataclasses.dataclass(frozen=True)
class Cut:
    """One dimension, or all of them in one, zero-padded at its end to a length that divides."""

    dim: int | None  # None: the array is flattened
    size: int  # the dimension's length
    padded: int  # the length that divides

    def pad(self, x: Array) -> Array:
        """The array in the shape in which shares are cut from it."""
        if self.dim is None:
            x = x.reshape(-1)
        if self.padded == self.size:
            return x
        widths = [(0, 0)] * x.ndim
        widths[self.dim or 0] = (0, self.padded - self.size)
        return jnp.pad(x, widths)

    def unpad(self, x: Array, shape: tuple[int, ...]) -> Array:
        """The inverse of `pad`, given the array's shape."""
        if self.padded != self.size:
            x = jax.lax.slice_in_dim(x, 0, self.size, axis=self.dim or 0)
        return x.reshape(shape)

    def padded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.dim is None:
            return (self.padded,)
        return (*shape[: self.dim], self.padded, *shape[self.dim + 1 :])

    def share_shape(self, shape: tuple[int, ...], shares: int) -> tuple[int, ...]:
        """The shape of one share, of the array's rank (a scalar's is 1): rules mask leaves by rank."""
        length = self.padded // shares
        if self.dim is None:
            return (length,) + (1,) * (len(shape) - 1)
        return (*shape[: self.dim], length, *shape[self.dim + 1 :])

    def window(self, shape: tuple[int, ...], start: Any) -> Window:
        """Where a share lies that begins at `start` along the cut, in an array of `shape`."""
        if self.dim is None:
            return Window(shape, (start,))
        return Window(shape, tuple(start if dim == self.dim else 0 for dim in range(len(shape))))

    @property
    def waste(self) -> float:
        """Padding as a fraction of the array."""
        return self.padded / self.size - 1


def flat_cut(shape: tuple[int, ...], shares: int) -> Cut | None:
    """The array flattened; None for one without elements."""
    size = math.prod(shape)
    return Cut(None, size, _next_multiple(size, shares)) if size else None


def choose_cut(
    shape: tuple[int, ...],
    shares: int,
    spec: PartitionSpec | None = None,
    mesh: Any = None,
    *,
    layers: bool = False,
) -> Cut | None:
    """How to divide an array of `shape` into `shares`.

    Preferred, in this order: a dimension that divides, one of which a share has 8 or more, one whose shares
    are whole blocks of the last axis (on TPUs rows of lanes, too), one that a mesh axis divides already (the
    new axes are minor to it: elsewhere the TPU compiler adds collective-permutes), one that is not the last,
    the longest. Padding is at most 1 %; an array without such a dimension is flattened, which costs compilers
    the reduce-scatter.

    Args:
      shape: the global shape.
      shares: the number of parts.
      spec: how mesh axes divide the array already.
      mesh: their sizes.
      layers: the first dimension runs over layers of a scan: compilers lose the reduce-scatter there.

    Returns:
      None for an array without elements.
    """
    if not shape or 0 in shape:
        return flat_cut(shape, shares)
    ranked = []
    for dim, size in enumerate(shape):
        divided = shards_of(spec, dim, mesh)
        cut = Cut(dim, size, _next_multiple(size, shares * divided))
        if cut.waste <= _MOST_PADDING and not (layers and dim == 0):
            is_last = len(shape) > 1 and dim == len(shape) - 1
            is_short = size < _SHORTEST * shares * divided
            cuts_blocks = is_last and size // (shares * divided) % BLOCK != 0
            ranked.append(((cut.waste > 0, is_short, cuts_blocks, divided == 1, is_last, -size), cut))
    if ranked:
        return min(ranked, key=lambda pair: pair[0])[1]
    return flat_cut(shape, shares * math.prod(shards_of(spec, d, mesh) for d in range(len(shape))))


def blocked_cut(shape: tuple[int, ...], shares: int) -> Cut | None:
    """How to divide an array of `shape` so that no block of its last axis is: along a dimension, always.

    Preferred: a dimension that divides, one that is not the last, the least padding.
    """
    if not shape or 0 in shape:
        return flat_cut(shape, shares)
    ranked = []
    for dim, size in enumerate(shape):
        is_last = dim == len(shape) - 1
        cut = Cut(dim, size, _next_multiple(size, shares * (BLOCK if is_last else 1)))
        ranked.append(((cut.waste > 0, is_last and cut.waste == 0, cut.waste, -size), cut))
    return min(ranked, key=lambda pair: pair[0])[1]


def _next_multiple(size: int, unit: int) -> int:
    return math.ceil(size / unit) * unit


def cut_spec(spec: PartitionSpec, cut: Cut, axes: Sequence[str], rank: int) -> PartitionSpec:
    """`spec` with `axes` added where the array is cut, minor to the axes already there."""
    parts = entries(spec, rank)
    if cut.dim is None:
        return normal_spec([(*(name for part in parts for name in part), *axes)])
    parts[cut.dim] = (*parts[cut.dim], *axes)
    return normal_spec(parts)
