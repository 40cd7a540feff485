"""Which leaves of a state are in the host's memory."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._static import StaticNode
from .._types import State


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class OffloadPlan(StaticNode):
    """The plan of `offload`, part of the state's structure.

    Attributes:
      on_host: for each leaf of the inner state, is it in host memory?
      owners: for each, the parameter that it belongs to; None for what all share.
      layers: for each parameter, is it to be streamed layer by layer?
      ways: for each parameter, how its state is streamed, in words.
    """

    on_host: tuple[bool, ...]
    owners: tuple[int | None, ...]
    layers: tuple[bool, ...]
    ways: tuple[str, ...] = ()

    def map_hosted(self, inner: Any, move: Callable[[Any], Any]) -> Any:
        """`inner` with `move` applied to what is in host memory."""
        leaves, treedef = jax.tree.flatten(inner)
        return treedef.unflatten(
            [move(x) if there else x for x, there in zip(leaves, self.on_host, strict=True)]
        )


class OffloadState(NamedTuple):
    """State of `offload`: the wrapped rule's, partly in host memory, and which part."""

    inner: State
    hosted: OffloadPlan


def is_offloaded(x: Any) -> bool:
    return isinstance(x, OffloadState)
