"""Accelerators by name: what memory a device of each has."""

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
      source: where the number is from.
    """

    name: str
    memory: int
    source: str


_COMPILER = "libtpu 0.0.42's compiler"
_DRIVER = "the driver's total"

CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.5 * _GIB), f"{_COMPILER}: 15.25 GiB for each of two cores that are one device"),
        Chip("v5e", int(15.75 * _GIB), _COMPILER),
        Chip("v5p", int(95.74 * _GIB), _COMPILER),
        Chip("v6e", int(31.25 * _GIB), _COMPILER),
        Chip("tpu7x", int(94.75 * _GIB), f"{_COMPILER}: a device is one of two cores"),
        Chip("A100", 81_920 * _MIB, _DRIVER),
        Chip("H100", 81_559 * _MIB, _DRIVER),
        Chip("H200", 143_771 * _MIB, _DRIVER),
        Chip("B200", 183_359 * _MIB, _DRIVER),
        Chip("MI300X", 192 * _GIB, "AMD's data sheet"),
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
