"""Accelerators by name: what a device of each has, and how fast it is at best."""

import difflib
from typing import NamedTuple

from .._errors import message

_GIB = 2**30
_MIB = 2**20


class Chip(NamedTuple):
    """A kind of device, as JAX counts devices.

    Attributes:
      name: as `--chip` takes it.
      memory: bytes that programs can have.
      bandwidth: bytes/s of its memory.
      flops: of products of bfloat16 matrices, operations/s, dense.
      link: bytes/s that it sends along one axis of a mesh, both directions of a ring together.
      node: how many devices are joined by `link`; an axis that goes beyond them has `network`.
      network: bytes/s that one device sends beyond them.
      per_host: how many devices a host has.
      source: where the numbers are from.
      fast: bytes of faster memory, that a compiler has for arrays that live shortly.
    """

    name: str
    memory: int
    bandwidth: float
    flops: float
    link: float
    node: int
    network: float
    per_host: int
    source: str
    fast: int = 0


_TPU = "libtpu 0.0.42's compiler (memory), Google Cloud's pages of this TPU"
_DRIVER = "the driver's total (memory), NVIDIA's data sheet"

# a torus has two axes on v5e and v6e, three elsewhere, with two links along each: of what Google gives as the
# chip's bidirectional bandwidth one axis has a half or a third, and half of that in one direction
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4",
            int(30.5 * _GIB),
            1.228e12,
            275e12,
            100e9,
            4096,
            3.1e9,
            4,
            f"{_TPU}; 15.25 GiB for each of two cores that are one device",
            16 * _MIB,
        ),
        Chip("v5e", int(15.75 * _GIB), 8.19e11, 197e12, 100e9, 256, 3.1e9, 8, _TPU, 128 * _MIB),
        Chip("v5p", int(95.74 * _GIB), 2.765e12, 459e12, 200e9, 8960, 6.25e9, 4, _TPU, 64 * _MIB),
        Chip("v6e", int(31.25 * _GIB), 1.638e12, 918e12, 200e9, 256, 12.5e9, 8, _TPU, 128 * _MIB),
        Chip(
            "tpu7x",
            int(94.75 * _GIB),
            3.69e12,
            1153e12,
            100e9,
            18432,
            6.25e9,
            8,
            f"{_TPU}; a device is one of two cores, half of the chip",
            64 * _MIB,
        ),
        Chip("A100", 81_920 * _MIB, 2.039e12, 312e12, 300e9, 8, 25e9, 8, _DRIVER),
        Chip("H100", 81_559 * _MIB, 3.35e12, 989e12, 450e9, 8, 50e9, 8, _DRIVER),
        Chip("H200", 143_771 * _MIB, 4.8e12, 989e12, 450e9, 8, 50e9, 8, _DRIVER),
        Chip("B200", 183_359 * _MIB, 7.7e12, 2250e12, 900e9, 8, 50e9, 8, _DRIVER),
        Chip("MI300X", 192 * _GIB, 5.3e12, 1307e12, 448e9, 8, 50e9, 8, "AMD's data sheet"),
    )
}


def chip_of(who: str, name: str | Chip) -> Chip:
    """The chip of a name; one that is a chip already as it is.

    Raises:
      ValueError: there is none.

    >>> chip_of("plan", "v5e").memory / 2**30
    15.75
    """
    if isinstance(name, Chip):
        return name
    found = {known.lower(): chip for known, chip in CHIPS.items()}.get(str(name).lower())
    if found is None:
        near = difflib.get_close_matches(str(name), CHIPS, n=1, cutoff=0.6)
        do = f"Did you mean {near[0]!r}?" if near else ""
        raise ValueError(message(who, f"chip is unknown, got {name!r}", allowed=", ".join(CHIPS), do=do))
    return found
