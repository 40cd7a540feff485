"""Sums of which each device of a mapped axis holds a part of its own."""

import dataclasses
from typing import Any, NamedTuple

import jax

from ._static import StaticNode


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class SummedOver(StaticNode):
    """The mapped axis of a sum, part of the tree's structure."""

    axis_name: str


class DeviceSum(NamedTuple):
    """A tree of addends: the value is their sum over a mapped axis, wherever it is needed.

    Attributes:
      parts: this device's, with a first axis of length 1, along which the devices' parts lie side by
        side outside of the mapped axis.
      over: the mapped axis.
    """

    parts: Any
    over: SummedOver

    @property
    def axis_name(self) -> str:
        return self.over.axis_name

    def mine(self) -> Any:
        """This device's addends, inside the mapped axis."""
        return jax.tree.map(lambda x: x[0], self.parts)


def own_part(tree: Any, axis_name: str | None) -> DeviceSum:
    """A sum to which this device adds `tree`."""
    return DeviceSum(jax.tree.map(lambda x: x[None], tree), SummedOver(str(axis_name)))


def is_device_sum(x: Any) -> bool:
    return isinstance(x, DeviceSum)
