"""Sums of which each device of a mapped axis holds a part of its own."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from ._nodes import DeviceForm, DiskForm, StateNode
from ._static import StaticNode


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class SummedOver(StaticNode):
    """The mapped axis of a sum, part of the tree's structure."""

    axis_name: str


class _Addends(NamedTuple):
    parts: Any
    over: SummedOver


class DeviceSum(_Addends, StateNode):
    """A tree of addends: the value is their sum over a mapped axis, wherever it is needed.

    Attributes:
      parts: this device's, with a first axis of length 1, along which the devices' parts lie side by
        side outside of the mapped axis.
      over: the mapped axis.
    """

    __slots__ = ()

    def mine(self) -> Any:
        """This device's addends, inside the mapped axis."""
        return jax.tree.map(lambda x: x[0], self.parts)

    def to_disk(self, form: DiskForm) -> "DeviceSum":
        return jax.tree.map(form.summed, self)

    def from_disk(self, values: Any, form: DiskForm) -> "DeviceSum":
        return jax.tree.map(form.spread, values, self)

    def to_global(self, form: DeviceForm) -> "DeviceSum":
        return jax.tree.map(form.summed, self)

    def to_per_device(self, values: Any, form: DeviceForm) -> "DeviceSum":
        return jax.tree.map(form.spread, values, self)

    def mapped_specs(self, outside: Callable[..., Any], divided: Sequence[Any], copies: int) -> "DeviceSum":
        del divided
        below, treedef = jax.tree_util.tree_flatten_with_path(self)
        specs = [outside(path, tuple(x.shape[copies + 1 :])) for path, x in below]
        return treedef.unflatten([PartitionSpec(self.over.axis_name, *spec) for spec in specs])


def own_part(tree: Any, axis_name: str | None) -> DeviceSum:
    """A sum to which this device adds `tree`."""
    return DeviceSum(jax.tree.map(lambda x: x[None], tree), SummedOver(str(axis_name)))
