"""Who works on what: equal matrices are stacked, and the stack is divided over the devices.

Each matrix is worked on whole, by one device: its owner. Matrices of one shape, and those that are its
transpose where a rule does not mind, are one batch, however many leaves they are in.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from ._transport import Parcel, Spread, Team

Work = Callable[..., Sequence[Array]]  # of stacks [matrices, ...]: the first results are like the operands


class Member(NamedTuple):
    """A leaf, and what a rule keeps for it.

    Attributes:
      number: of the leaf.
      kind: members of one kind can be stacked: shape of the matrices, and dtypes.
      spreads: of the leaf, and of each array that comes with it.
    """

    number: int
    kind: tuple[Any, ...]
    spreads: tuple[Spread, ...]


class Batch(NamedTuple):
    """Members of one kind."""

    members: tuple[Member, ...]
    team: Team

    def _loads(self) -> list[list[Member]]:
        """Those that can travel together."""
        found: dict[Any, list[Member]] = {}
        for member in self.members:
            key = tuple(Parcel((spread,), self.team).key for spread in member.spreads)
            found.setdefault(key, []).append(member)
        return list(found.values())

    def _parcels(self, load: list[Member]) -> list[Parcel]:
        return [Parcel(spreads, self.team) for spreads in zip(*(m.spreads for m in load), strict=True)]

    @property
    def rows(self) -> int:
        """Units that each device works on, padding included."""
        return sum(self._parcels(load)[0].rows for load in self._loads())

    def owners(self) -> dict[int, str]:
        """Number of a member -> the devices that work on it, by places along axes that share its units."""
        found = {}
        for load in self._loads():
            parcel, start = self._parcels(load)[0], 0
            devices = parcel.free.devices
            for member in load:
                count = parcel.units(member.spreads[0])
                places = sorted({(start + n) % devices for n in range(min(count, devices))})
                apart = [f"its own along {name}" for name in member.spreads[0].unit_axes]
                shared = [f"{'+'.join(parcel.free.names)} {_ranges(places)}"] if devices > 1 else []
                found[member.number] = ", ".join(apart + shared) or "-"
                start += count
        return found

    def worked_on(self, arrays: Sequence[Sequence[Array]], work: Work) -> list[list[Array]]:
        """Runs `work` on the owners' devices.

        Args:
          arrays: for each member its arrays, one device's parts.
          work: from stacks of each array to new ones.

        Returns:
          For each member as many arrays as `work` has results, lying as they were.
        """
        of = {member.number: own for member, own in zip(self.members, arrays, strict=True)}
        loads = self._loads()
        parcels = [self._parcels(load) for load in loads]
        stacks = [
            [p.gathered([of[m.number][j] for m in load]) for j, p in enumerate(mine)]
            for load, mine in zip(loads, parcels, strict=True)
        ]
        results = work(*(_joined(xs) for xs in zip(*stacks, strict=True)))
        found: dict[int, list[Array]] = {m.number: [] for m in self.members}
        for j, result in enumerate(results):
            start = 0
            for load, mine, own in zip(loads, parcels, stacks, strict=True):
                stop = start + len(own[0])
                for member, x in zip(load, mine[j].returned(result[start:stop]), strict=True):
                    found[member.number].append(x)
                start = stop
        return [found[m.number] for m in self.members]


def batches(members: Sequence[Member], team: Team) -> list[Batch]:
    """Members by kind, in the order in which kinds appear."""
    kinds: dict[Any, list[Member]] = {}
    for member in members:
        kinds.setdefault(member.kind, []).append(member)
    return [Batch(tuple(own), team) for own in kinds.values()]


def _ranges(places: Sequence[int]) -> str:
    """Numbers in order, runs of them as their ends.

    >>> _ranges([0, 1, 2, 5, 7, 8])
    '0-2 5 7-8'
    """
    runs: list[list[int]] = []
    for n in places:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return " ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)


def _joined(stacks: Sequence[Array]) -> Array:
    return stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
