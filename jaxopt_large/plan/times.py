"""How long a step takes at least, by what each resource of a chip is asked for."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .._tables import Columns, Table, size, table
from ..tracing.costs import Costs
from ..tracing.layouts import Sent
from .chips import Chip

_SMALL = 1000  # of what all together send: less than the one in so many parts is not printed
_TWICE = ("all-reduce",)  # a sum is sent, and then sent back


class PlannedCollective(NamedTuple):
    """Collectives of one kind over the same axes.

    Attributes:
      kind: as `jl.plan.collectives` has it.
      axes: the mesh axes over which devices exchange.
      count: in the program; what stands in a loop counts once.
      in_loops: how many of them stand in loops.
      bytes: of one step, rounds of loops multiplied out: of the whole arrays on one device.
      seconds: at the bandwidth of the chip; None without one.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    in_loops: int
    bytes: int
    seconds: float | None


class PlannedCollectives(Table):
    """What devices send in one step, the most first."""

    columns = ("kind", "over", "count", "in loops", "a step", "at least")

    def cell(self, row: PlannedCollective, column: str) -> str:
        """What is printed of a row in a column."""
        found = {
            "kind": row.kind,
            "over": ", ".join(row.axes),
            "count": f"{row.count:,}",
            "in loops": f"{row.in_loops:,}",
            "a step": size(row.bytes),
            "at least": "-" if row.seconds is None else duration(row.seconds),
        }
        return found[column]

    def __str__(self) -> str:
        return table(*self.large())

    def large(self) -> Columns:
        """What is printed: what is large, and how much is not."""
        least = self.bytes() / _SMALL
        large = [row for row in self if row.bytes >= least]
        entries = [[self.cell(row, column) for column in self.columns] for row in large]
        rest = len(self) - len(large)
        if rest:
            entries.append([f"... and {rest} smaller", *[""] * (len(self.columns) - 1)])
        return Columns(self.columns, entries)

    def count(self, kind: str) -> int:  # type: ignore[override]
        """How many of a kind there are in the program."""
        return sum(row.count for row in self if row.kind == kind)

    def bytes(self, kind: str | None = None) -> int:
        """Of one step, of a kind or of all."""
        return sum(row.bytes for row in self if kind in (None, row.kind))


def collectives_of(costs: Sequence[Costs], sizes: Mapping[str, int], chip: Chip | None) -> PlannedCollectives:
    """The collectives of a step, those of a kind over the same axes together."""
    found: dict[tuple[str, tuple[str, ...]], list[Sent]] = {}
    for sent in (x for cost in costs for x in cost.sent):
        found.setdefault((sent.kind, sent.axes), []).append(sent)
    rows = [
        PlannedCollective(
            kind,
            axes,
            len(some),
            sum(x.loops > 0 for x in some),
            sum(x.bytes * x.rounds for x in some),
            None if chip is None else sum(x.rounds * _seconds(x, sizes, chip) for x in some),
        )
        for (kind, axes), some in found.items()
    ]
    return PlannedCollectives(sorted(rows, key=lambda row: -row.bytes))


def times_of(
    costs: Sequence[Costs], collectives: PlannedCollectives, held: int, chip: Chip | None
) -> dict[str, float]:
    """Seconds that each resource needs: "compute", "memory", and "network" along each axis.

    Args:
      costs: of the parts of a step.
      collectives: of the step.
      held: bytes of parameters, gradients and state: all are read, and written.
      chip: the kind of device; without one nothing is known.
    """
    if chip is None:
        return {}
    found = {
        "compute": sum(c.flops for c in costs) / chip.flops,
        "memory": (2 * held + sum(c.traffic for c in costs)) / chip.bandwidth,
    }
    for row in collectives:
        name = f"network over {', '.join(row.axes)}"
        found[name] = found.get(name, 0.0) + (row.seconds or 0.0)
    return found


def _seconds(sent: Sent, sizes: Mapping[str, int], chip: Chip) -> float:
    """Of one round, at the bandwidth of the slowest link that it crosses."""
    devices = math.prod(sizes[a] for a in sent.axes)
    share = (devices - 1) / devices
    volume = sent.bytes * (1.0 if sent.kind == "collective-permute" else share)
    names = list(sizes)
    inner = math.prod(sizes[a] for a in names[min(names.index(a) for a in sent.axes) :])
    speed = chip.link if inner <= chip.node else chip.network
    return volume * (2 if sent.kind in _TWICE else 1) / speed


def duration(seconds: float, *, signed: bool = False) -> str:
    """A time, in the unit that suits.

    >>> duration(0.0123), duration(75.0), duration(2e-6), duration(0.5, signed=True)
    ('12.3 ms', '75.0 s', '2.0 us', '+500.0 ms')
    """
    sign = "+" if signed else ""
    for limit, scale, unit in ((10, 1, "s"), (1e-4, 1e3, "ms"), (0, 1e6, "us")):
        if abs(seconds) >= limit:
            return f"{seconds * scale:{sign},.1f} {unit}"
    return f"{seconds:{sign},.1f} s"


def operations(flops: float) -> str:
    """Floating-point operations, in the unit that suits.

    >>> operations(2.5e12), operations(7e6)
    ('2.50 TFLOP', '7.00 MFLOP')
    """
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if flops >= limit:
            return f"{flops / limit:,.2f} {unit}FLOP"
    return f"{flops:,.0f} FLOP"
