"""Plans of several configurations side by side."""

from collections.abc import Mapping
from typing import Any

from .._tables import Table, size, table
from .sheet import Plan
from .times import duration


class Beside(Table):
    """Plans of several configurations, a column for each."""

    names: tuple[str, ...]

    def __new__(cls, rows: Any, names: tuple[str, ...] = ()) -> "Beside":  # noqa: D102
        made = super().__new__(cls, rows)
        made.names = names
        return made

    def __str__(self) -> str:
        return table(("one device", *self.names), list(self))


def beside(plans: Mapping[str, Plan]) -> Beside:
    """A table of plans: what each holds, and how long a step takes."""
    parts = ["parameters", "gradients", "accumulators", "state", "activations", "temporaries"]
    rows = [(part, *(size(p.part(part)) for p in plans.values())) for part in parts]
    rows.append(("all", *(size(p.device_bytes) for p in plans.values())))
    rows.append(("devices", *(f"{p.devices:,}" for p in plans.values())))
    rows.append(("fits", *("-" if p.chip is None else "yes" if p.fits else "no" for p in plans.values())))
    rows.append(("sent a step", *(size(p.collectives.bytes()) for p in plans.values())))
    rows.append(
        ("a step, at least", *("-" if p.floor is None else duration(p.floor) for p in plans.values()))
    )
    rows.append(("a checkpoint", *(size(p.checkpoint_bytes) for p in plans.values())))
    return Beside(rows, tuple(plans))
