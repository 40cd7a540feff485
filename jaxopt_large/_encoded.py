"""An array kept in another format: codes of its own shape, and scales for blocks of its last axis.

Storage makes these nodes of a state, placement asks them where their scales belong, checkpoints name
them; none of the three knows the others.
"""

import dataclasses
import functools
from typing import Any

import jax

BLOCK = 128  # elements along the last axis that share a scale: one vector register of a TPU
DECODE, ENCODE = "jaxopt_large_decode", "jaxopt_large_encode"  # how the inner jits of a codec are named


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales"),
    meta_fields=("format", "dtype", "order"),
)
@dataclasses.dataclass(frozen=True)
class Encoded:
    """One encoded array.

    Attributes:
      codes: of the array's shape, so that the parameter's `PartitionSpec` fits.
      scales: float32, one per block of `BLOCK` elements along the last axis; None where the format
        has none. Its axes are those of (*leading axes, blocks) in `order`.
      format: how to decode it.
      dtype: of the array when decoded.
      order: the longest axes of the scales come last, so that no chip pads them.
    """

    codes: Any
    scales: Any
    format: Any
    dtype: str
    order: tuple[int, ...]


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
