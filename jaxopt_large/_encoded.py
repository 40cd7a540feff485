"""An array kept in another format: codes of its own shape, and scales for blocks of its last axis.

Storage makes these nodes of a state, placement asks them where their scales belong, checkpoints name
them; none of the three knows the others.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from ._static import StaticNode

BLOCK = 128  # elements along the last axis that share a scale: one vector register of a TPU


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Coding(StaticNode):
    """What codes and scales stand for, part of the tree's structure.

    Attributes:
      format: how to decode them.
      decoded_dtype: of the array when decoded.
      order: of the scales' axes: the longest come last, so that no chip pads them.
    """

    format: Any
    decoded_dtype: str
    order: tuple[int, ...]


class Encoded(NamedTuple):
    """One encoded array; a NamedTuple, since frameworks take states of these apart and put them together.

    Attributes:
      codes: of the array's shape, so that the parameter's `PartitionSpec` fits.
      scales: float32, one per block of `BLOCK` elements along the last axis; None where the format
        has none. Its axes are those of (*leading axes, blocks) in `order`.
      coding: what they stand for.
    """

    codes: Any
    scales: Any
    coding: Coding

    @property
    def format(self) -> Any:
        return self.coding.format

    @property
    def dtype(self) -> str:
        return self.coding.decoded_dtype

    @property
    def order(self) -> tuple[int, ...]:
        return self.coding.order


def is_encoded(x: Any) -> bool:
    return isinstance(x, Encoded)


def blocks_of(length: int) -> int:
    """How many blocks an axis has."""
    return -(-length // BLOCK)


def scale_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the scales' axes, given the shape of the whole array.

    >>> scale_order((4096, 4096)), scale_order((12, 768, 3072)), scale_order((4, 65536))
    ((1, 0), (0, 2, 1), (0, 1))
    """
    lengths = (*shape[:-1], blocks_of(shape[-1]))
    return tuple(sorted(range(len(lengths)), key=lambda axis: lengths[axis]))


def scale_shape(shape: tuple[int, ...], order: tuple[int, ...]) -> tuple[int, ...]:
    lengths = (*shape[:-1], blocks_of(shape[-1]))
    return tuple(lengths[axis] for axis in order)
