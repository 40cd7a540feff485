"""Sums of which each device of a mapped axis holds a part of its own."""

import dataclasses
import functools
from typing import Any

import jax


@functools.partial(jax.tree_util.register_dataclass, data_fields=("parts",), meta_fields=("axis_name",))
@dataclasses.dataclass(frozen=True)
class DeviceSum:
    """A tree of addends: the value is their sum over a mapped axis, wherever it is needed.

    Attributes:
      parts: this device's, with a first axis of length 1, along which the devices' parts lie side by
        side outside of the mapped axis.
      axis_name: the mapped axis.
    """

    parts: Any
    axis_name: str

    def mine(self) -> Any:
        """This device's addends, inside the mapped axis."""
        return jax.tree.map(lambda x: x[0], self.parts)


def own_part(tree: Any, axis_name: str | None) -> DeviceSum:
    """A sum to which this device adds `tree`."""
    return DeviceSum(jax.tree.map(lambda x: x[None], tree), str(axis_name))


def is_device_sum(x: Any) -> bool:
    return isinstance(x, DeviceSum)
