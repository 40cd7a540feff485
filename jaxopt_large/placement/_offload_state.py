"""The state of `offload`: which leaves are in the host's memory, and what that means."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._nodes import Decision, DiskForm, Place, StateNode, by_owner, bytes_of, members
from .._static import StaticNode
from .._types import Params, State


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


class _OffloadFields(NamedTuple):
    inner: State
    hosted: OffloadPlan


class OffloadState(_OffloadFields, StateNode):
    """State of `offload`: the wrapped rule's, partly in host memory, and which part."""

    __slots__ = ()

    def to_disk(self, form: DiskForm) -> Any:
        return form.of(self.inner)

    def from_disk(self, values: Any, form: DiskForm) -> "OffloadState":
        return OffloadState(form.back(values, self.inner), self.hosted)

    def in_memory(self) -> "OffloadState":
        inner = self.hosted.map_hosted(self.inner, lambda s: s.with_memory_kind("pinned_host"))
        return OffloadState(inner, self.hosted)

    def places(self, inner: list[Place]) -> list[Place]:
        return [
            Place(at.bytes, 0, ", ".join(filter(None, [at.where, "host"]))) if there else at
            for at, there in zip(inner, self.hosted.on_host, strict=True)
        ]

    def decisions(self, params: Params, copies: int) -> list[Decision]:
        del copies
        hosted, mine = self.hosted, by_owner(self.hosted.owners)
        inner, rows = jax.tree.leaves(self.inner), []
        for i, (path, shape) in enumerate(members(self.inner, hosted.owners, len(hosted.layers), params)):
            own = mine.get(i, [])
            there = [j for j in own if hosted.on_host[j]]
            way = f", streamed {hosted.ways[i]}" if i < len(hosted.ways) else ""
            why = (
                f"{len(there)} of {len(own)} leaves in host memory{way}" if there else "not chosen, or small"
            )
            held = sum(bytes_of(inner[j]) for j in own if not hosted.on_host[j])
            rows.append(Decision("offload", path, shape, "host" if there else "device", held, why))
        return rows
