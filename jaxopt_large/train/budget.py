"""The configuration that fits a budget of bytes on each device, and costs least."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .._errors import message
from .._tables import size, table
from ..config import Config, changed
from ..plan import CHIPS, Chip, Plan
from ._errors import RunError
from .choices import (
    Change,
    divided,
    formats,
    micro_batches,
    offloaded,
    once,
    planned_with,
    remats,
    serial,
    state_plan,
    transfers_of,
    with_changes,
)
from .planning import plan_of

# of a budget that is left: plans are up to 4 % below the TPU compiler's peak (benchmarks/results/runs.json)
MARGIN = 0.1
NEARLY = 1e-3  # of the cost: what differs by less is not worth more words in a file
NOMINAL = CHIPS["v5e"]._replace(fast=0)  # whose speeds count where no chip is named


class Choice(NamedTuple):
    """Whether and how a configuration fits a budget.

    Attributes:
      config: with the changes; None where nothing fits.
      changes: that were made.
      plan: of it; of the smallest where nothing fits.
      budget: bytes.
      reasons: of each change, what it is for.
    """

    config: Config | None
    changes: tuple[Change, ...]
    plan: Plan
    budget: int
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        needed = self.plan.device_bytes
        if self.config is None:
            over = int(needed / (1 - MARGIN)) - self.budget
            lines = [
                f"Nothing fits {size(self.budget)}: the smallest takes {size(needed)}, "
                f"with a margin {size(over)} too much."
            ]
        elif not self.changes:
            return f"It fits {size(self.budget)} as it is: {size(needed)}."
        else:
            lines = [
                f"Fits {size(self.budget)} with {size(needed)}; the rest is for what a plan does not see:"
            ]
        rows = [(c.line, why) for c, why in zip(self.changes, self.reasons, strict=True)]
        return "\n".join([*lines, "", table(("change", "because"), rows)]) if rows else lines[0]

    def to_json(self) -> dict[str, Any]:
        """As other programs read it."""
        return {
            "fits": self.config is not None,
            "budget": self.budget,
            "device_bytes": self.plan.device_bytes,
            "changes": [c.values for c in self.changes],
            "reasons": list(self.reasons),
        }


def within(config: Config, budget: int, *, chip: str | Chip | None = None) -> Choice:
    """The configuration that fits a budget of bytes on each device and costs least.

    One that fits as it is stays so. Else formats of moments, what is divided over the data axis, offloading,
    micro-batches and recomputation are chosen together: of all that fit, with a margin of 10 %, the least
    time of a step (each resource after the other), lengthened by the square of the relative error of what is
    stored: so much noise it adds to the gradients', and so many more steps would average it out. Formats and
    the host's memory are chosen for each group of the optimizer, or for embeddings and the rest.

    Raises:
      ValueError: the parameters alone take more than the budget, however they are divided.
      RunError: the model has no loss, so that its activations are not known.
    """
    named, chip = chip is not None, chip or NOMINAL
    now = plan_of(config, chip=chip)
    if not now.has_model:
        wrong = "--budget needs activations, which are known of models with a loss, under parallel: jit"
        raise RunError(message("plan", wrong, do="Compare plans by --chip, whose headroom leaves them out"))
    if now.device_bytes <= budget * (1 - MARGIN):
        return Choice(config, (), now if named else now.without_chip(), budget, ())
    states = list(_states(config))
    least = min(state.parameters for state in states)
    if least > budget:
        wrong = f"budget is below the parameters, got {size(budget)}"
        raise ValueError(message("plan", wrong, allowed=f"they take {size(least)} on each device at least"))
    works = list(_works(config, chip))
    best = _best(((state, work) for state in states for work in works), budget)
    if best is None:
        state, work = min(
            ((s, w) for s in states for w in works if s.fits_beside(w)), key=lambda x: x[0].bytes + x[1].bytes
        )
    else:
        state, work = best
    changes = once([*state.changes, *work.changes])
    new = changed(config, {path: value for change in changes for path, value in change.values.items()})
    made = plan_of(new, chip=chip)
    reasons = _reasons(config, changes, chip, made)
    fits = best is not None and made.device_bytes <= budget
    shown = made if named else made.without_chip()
    return Choice(new if fits else None, changes, shown, budget, reasons)


class _State(NamedTuple):
    """Formats and placement, and bytes of parameters and state with them."""

    changes: tuple[Change, ...]
    bytes: int
    parameters: int
    place: str
    error: float
    transfers: float

    def fits_beside(self, work: "_Work") -> bool:
        return self.place == work.place


class _Work(NamedTuple):
    """Placement, micro-batches and recomputation, and what gradients and activations take with them."""

    changes: tuple[Change, ...]
    bytes: int
    place: str
    seconds: float


def _states(config: Config) -> Iterator[_State]:
    forms = (None, *formats(config))
    for place in _placements(config):
        for form in forms:
            changes = tuple(c for c in (place, form) if c is not None)
            new = with_changes(config, changes)
            found = None if new is None else state_plan(new)
            if found is None or new is None:
                continue
            yield _State(
                changes,
                found.part("parameters") + found.part("state"),
                found.part("parameters"),
                _place_of(new),
                form.error if form else 0.0,
                transfers_of(found),
            )


def _works(config: Config, chip: str | Chip | None) -> Iterator[_Work]:
    for place in _placements(config):
        if place is not None and "placement.offload" in place.values:
            continue  # the same work
        for micro in (None, *micro_batches(config)):
            for remat in (None, *remats(config)):
                changes = tuple(c for c in (place, micro, remat) if c is not None)
                new = with_changes(config, changes)
                found = planned_with(config, changes, chip)
                if found is None or new is None:
                    continue
                rest = found.device_bytes - found.part("parameters") - found.part("state")
                yield _Work(changes, rest, _place_of(new), serial(found) or 0.0)


def _placements(config: Config) -> list[Change | None]:
    return [None, *divided(config), *offloaded(config)]


def _place_of(config: Config) -> str:
    place = config.placement
    return f"{place.zero} {place.fsdp}"


def _best(pairs: Iterable[tuple[_State, _Work]], budget: int) -> tuple[_State, _Work] | None:
    """Of all that fit, what costs least; of those that cost nearly as little the simplest."""
    room = budget * (1 - MARGIN)
    fitting = [(s, w) for s, w in pairs if s.fits_beside(w) and s.bytes + w.bytes <= room]
    costs = [(work.seconds + state.transfers) * (1 + state.error**2) for state, work in fitting]
    least = min(costs, default=0.0) * (1 + NEARLY)

    def words(n: int) -> tuple[int, int, float]:
        changes = once([*fitting[n][0].changes, *fitting[n][1].changes])
        return len(changes), sum(c.globs for c in changes), costs[n]

    near = [n for n, cost in enumerate(costs) if cost <= least]
    return fitting[min(near, key=words)] if near else None


def _reasons(
    config: Config, changes: tuple[Change, ...], chip: str | Chip | None, made: Plan
) -> tuple[str, ...]:
    """What each change saves beside the others."""
    found = []
    for change in changes:
        without = planned_with(config, [c for c in changes if c is not change], chip)
        saved = 0 if without is None else without.device_bytes - made.device_bytes
        text = f"saves {size(max(saved, 0))} on each device"
        if change.error:
            text += f"; moments are {100 * change.error:.1f} % off after one encoding"
        found.append(text)
    return tuple(found)
