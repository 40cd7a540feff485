"""A plan as it is handed out: rows, sums, what a step does, and how all of it is printed."""

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .._state_rows import NONE
from .._tables import Columns, Table, fields_of, size, table
from .chips import Chip
from .step import StepCosts
from .times import PlannedCollectives, collectives_of, duration, operations, times_of

_DISK = 1e9  # bytes/s that one host writes


class PlanRow(NamedTuple):
    """Arrays of one kind.

    Attributes:
      part: "parameters", "gradients", "accumulators", "state", and of a model "activations", what the forward
        pass keeps for the backward pass, and "temporaries", what a step needs besides, both without what a
        chip's fast memory holds.
      field: of the state, "adam mu", and "counters" for the numbers that all parameters share; "-" of the
        others.
      dtype: or the name of the format, whose scales count; "-" of several.
      bytes: of all devices together, each array counted once.
      device_bytes: on the device that has most.
    """

    part: str
    field: str
    dtype: str
    bytes: int
    device_bytes: int


class Whole(NamedTuple):
    """The state of a parameter that each device has all of.

    Attributes:
      path: the parameter's.
      bytes: on each device.
      reason: why.
    """

    path: str
    bytes: int
    reason: str


class Plan(Table):
    """What one device holds at the fullest moment of a step: a `PlanRow` for each kind of arrays.

    Without a model, activations and the step's temporaries are not in it.

    Attributes:
      devices: how many there are.
      chip: what they are; None where that was not said.
      whole: the largest parts of the state that `zero` does not divide, and why.
      axes: mesh axis -> number of devices.
      alternatives: cheaper ones, where a configuration was planned.
      offloaded: bytes of the state that each device has in its host's memory.
    """

    columns = PlanRow._fields
    devices: int
    chip: Chip | None
    whole: tuple[Whole, ...]
    axes: Mapping[str, int]
    alternatives: tuple[Any, ...]
    offloaded: int
    _costs: Callable[[], StepCosts]

    def __new__(  # noqa: D102
        cls,
        rows: Any,
        devices: int = 1,
        chip: Chip | None = None,
        whole: tuple[Whole, ...] = (),
        axes: Mapping[str, int] | None = None,
        costs: Callable[[], StepCosts] = StepCosts,
        alternatives: tuple[Any, ...] = (),
        offloaded: int = 0,
    ) -> "Plan":
        made = super().__new__(cls, rows)
        made.devices, made.chip, made.whole = devices, chip, whole
        made.axes, made._costs, made.alternatives = axes or {}, functools.cache(costs), alternatives
        made.offloaded = offloaded
        return made

    def beside(self, alternatives: Iterable[Any]) -> "Plan":
        """The same, with alternatives."""
        return Plan(
            self,
            self.devices,
            self.chip,
            self.whole,
            self.axes,
            self._costs,
            tuple(alternatives),
            self.offloaded,
        )

    def without_chip(self) -> "Plan":
        """The same, of devices of which nothing is said."""
        return Plan(
            self, self.devices, None, self.whole, self.axes, self._costs, self.alternatives, self.offloaded
        )

    @property
    def device_bytes(self) -> int:
        """Of one device, all rows together."""
        return sum(row.device_bytes for row in self)

    @property
    def headroom(self) -> int | None:
        """What the chip has left for activations and temporaries; negative where it is too small."""
        return None if self.chip is None else self.chip.memory - self.device_bytes

    @property
    def fits(self) -> bool:
        """Has the chip room for it? Without a chip, yes."""
        return self.headroom is None or self.headroom >= 0

    def part(self, name: str) -> int:
        """Bytes of one part on one device."""
        return sum(row.device_bytes for row in self if row.part == name)

    @property
    def has_model(self) -> bool:
        """Are activations and temporaries in it?"""
        return any(row.part == "temporaries" for row in self)

    @property
    def checkpoint_bytes(self) -> int:
        """Of parameters and state, as they are written: each array once."""
        return sum(row.bytes for row in self if row.part in ("parameters", "state"))

    @property
    def host_bytes(self) -> int:
        """Of the memory of one host: its devices' part of a checkpoint, and what is offloaded there."""
        here = min(self.chip.per_host if self.chip else 8, self.devices)
        return here * (self.checkpoint_bytes // self.devices + self.offloaded)

    @property
    def checkpoint_seconds(self) -> float:
        """Of writing a checkpoint, every host its part at 1 GB/s."""
        hosts = max(1, self.devices // (self.chip.per_host if self.chip else 8))
        return self.checkpoint_bytes / hosts / _DISK

    @property
    def flops(self) -> float | None:
        """Of matrix products in one step, on one device; None where the step could not be traced."""
        known = self._costs().known
        return sum(c.flops for c in known) if known else None

    @property
    def collectives(self) -> PlannedCollectives:
        """What devices send in one step; without a model, in the optimizer's part of it."""
        return collectives_of(self._costs().known, self.axes, self.chip)

    @property
    def times(self) -> dict[str, float]:
        """Seconds that each resource of the chip needs for a step; empty without a chip."""
        costs = self._costs().known
        held = self.part("parameters") + self.part("state") + self.part("gradients")
        return times_of(costs, self.collectives, held, self.chip) if costs else {}

    @property
    def floor(self) -> float | None:
        """Seconds that a step takes at least: what the slowest resource needs."""
        return max(self.times.values(), default=None)

    def cell(self, row: PlanRow, column: str) -> str:
        """What is printed of a row in a column."""
        value = getattr(row, column)
        return size(value) if column in ("bytes", "device_bytes") else str(value)

    def __str__(self) -> str:
        return "\n\n".join(part if isinstance(part, str) else table(*part) for part in self.parts())

    def parts(self) -> list[str | Columns]:
        """What is printed, one after another: lines of text, and tables."""
        entries = [[self.cell(row, column) for column in self.columns] for row in self]
        entries.append(["all", NONE, NONE, size(sum(r.bytes for r in self)), size(self.device_bytes)])
        found: list[str | Columns] = [
            Columns(("part", "field", "dtype", "all devices", "one device"), entries)
        ]
        lines = self._verdict()
        if self.chip is not None or self.has_model:
            lines += self._of_a_step()
        found.append("\n".join(lines))
        if (self.chip is not None or self.has_model) and self.collectives:
            found.append(self.collectives.large())
        if self.whole:
            rows = [(w.path, size(w.bytes), w.reason) for w in self.whole]
            found.append(Columns(("not divided", "one device", "reason"), rows))
        if self.alternatives:
            rows = [a.words() for a in self.alternatives]
            found.append(Columns(("instead", "saves", "adds to a step"), rows))
        return found

    def _verdict(self) -> list[str]:
        count = f"{self.devices:,} device{'s' if self.devices != 1 else ''}"
        without = "" if self.has_model else ", without activations"
        if self.chip is None or self.headroom is None:
            return [f"{count}: {size(self.device_bytes)} each{without}."]
        of = f"{count}, {self.chip.name} of {size(self.chip.memory)}"
        if not self.fits:
            return [f"{of}: does not fit, by {size(-self.headroom)} each."]
        return [f"{of}: {size(self.headroom)} left{' for activations' if without else ''}."]

    def _of_a_step(self) -> list[str]:
        costs, lines = self._costs(), []
        if costs.why:
            lines.append(f"The rule's own collectives are not known: {costs.why}.")
        if self.has_model and self.flops is not None:
            lines.append(f"A step: {operations(self.flops)} on each device.")
        if self.times:
            slowest = max(self.times, key=lambda name: self.times[name])
            others = [f"{n} {duration(t)}" for n, t in self.times.items() if n != slowest and t >= 1e-4]
            rest = f" ({', '.join(others)})" if others else ""
            what = "A step" if self.has_model else "The optimizer's step"
            lines.append(f"{what} takes {duration(self.times[slowest])} at least, by {slowest}{rest}.")
        if self.has_model:
            lines.append(
                f"A checkpoint: {size(self.checkpoint_bytes)}, {duration(self.checkpoint_seconds)} at 1 GB/s "
                f"a host; {size(self.host_bytes)} of a host's memory."
            )
        return lines

    def to_json(self) -> str:
        """Rows, what is not divided, what is sent, and the sums, as JSON."""
        chip = None if self.chip is None else self.chip._asdict()
        rows, whole = [fields_of(r) for r in self], [fields_of(w) for w in self.whole]
        found = {
            "rows": rows,
            "not_divided": whole,
            "devices": self.devices,
            "chip": chip,
            "device_bytes": self.device_bytes,
            "headroom": self.headroom,
            "fits": self.fits,
            "host_bytes": self.host_bytes,
            "checkpoint_bytes": self.checkpoint_bytes,
            "checkpoint_seconds": self.checkpoint_seconds,
            "flops": self.flops,
            "collectives": [fields_of(c) for c in self.collectives],
            "seconds": self.times,
            "floor": self.floor,
            "alternatives": [a.as_json() for a in self.alternatives],
        }
        return json.dumps(found, indent=1)
