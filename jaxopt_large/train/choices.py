"""What of a configuration could be otherwise, to take less memory, and the choice that costs least."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from .._errors import message
from .._tables import Table, size, table
from ..config import Config, ConfigError, build, changed
from ..config import abstract_mesh_of as mesh_of
from ..models import make_model
from ..plan import Plan, duration
from ..plan import plan as plan_rule
from ._errors import RunError
from .planning import plan_of
from .shardings import placed_params

# relative error of a moment of normal gradients after one encoding: root of the mean square, of mu or of nu,
# whichever is larger (tests/train/test_budget.py measures it). Without bfloat16: twice the bytes of int8, and
# no loss in training tells them apart.
ERRORS = {"float32": 0.0, "int8": 0.0074, "int4": 0.146}
_FORMATS = (
    {"mu": "int8", "nu": "int8", "trace": "int8"},
    {"mu": "int4", "nu": "int8", "trace": "int4"},
)
# of a budget that is left: plans of 8 GiB and more have been up to 5 % below the TPU compiler's peak (one of
# 2.3 GiB 17 %: benchmarks/results/runs.json)
MARGIN = 0.08
_NOMINAL = "v5e"  # whose speeds count where no chip is named
_TO_HOST = 16e9  # bytes/s between a device and its host
_MOST = 3
_MOMENTS = ("mu", "nu", "trace")


class Change(NamedTuple):
    """Settings that could be otherwise.

    Attributes:
      values: dotted path -> value.
      error: of what is stored, relative; 0 where numbers stay what they are.
    """

    values: dict[str, Any]
    error: float = 0.0

    @property
    def line(self) -> str:
        """As a file has it."""
        return ", ".join(f"{path}: {_yaml(value)}" for path, value in self.values.items())


class Alternative(NamedTuple):
    """A configuration that differs in one line and takes less.

    Attributes:
      line: to change.
      saves: bytes on one device.
      seconds: that it adds to a step, were each resource used after the other; None without a chip.
    """

    line: str
    saves: int
    seconds: float | None

    def words(self) -> tuple[str, str, str]:
        """Its row in a table."""
        return (
            self.line,
            size(self.saves),
            "-" if self.seconds is None else duration(self.seconds, signed=True),
        )

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return self._asdict()


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


def alternatives(config: Config, plan: Plan, *, chip: str | None) -> list[Alternative]:
    """The cheaper configurations that differ in one line: those that save most, the fastest first."""
    found = []
    for change in itertools.chain(_formats(config), _offloaded(config)):  # the step's work stays what it is
        new = _with(config, [change])
        other = None if new is None else _state_plan(new)
        saved = 0 if other is None else plan.part("state") - other.part("state")
        if other is not None and saved > 0:
            found.append(Alternative(change.line, saved, None if chip is None else _transfers(other)))
    micro = itertools.islice(_micro_batches(config), 1)
    for change in itertools.chain(_divided(config), micro, _remat(config)):
        other = _planned(config, [change], chip)
        if other is not None and other.device_bytes < plan.device_bytes:
            saved = plan.device_bytes - other.device_bytes
            adds = None if chip is None else (_serial(other) or 0.0) - (_serial(plan) or 0.0)
            found.append(Alternative(change.line, saved, adds))
    best = sorted(found, key=lambda a: -a.saves)[:_MOST]
    return sorted(best, key=lambda a: (a.seconds or 0.0, -a.saves))


def within(config: Config, budget: int, *, chip: str | None = None) -> Choice:
    """The configuration that fits a budget of bytes on each device and costs least.

    One that fits as it is stays so. Else formats of moments, what is divided over the data axis, offloading,
    micro-batches and recomputation are chosen together: of all that fit, with a margin of 8 %, the least time
    of a step (each resource after the other), lengthened by the square of the relative error of what is
    stored: so much noise it adds to the gradients', and so many more steps would average it out.

    Raises:
      ValueError: the parameters alone take more than the budget, however they are divided.
      RunError: the model has no loss, so that its activations are not known.
    """
    chip = chip or _NOMINAL
    now = plan_of(config, chip=chip)
    if not now.has_model:
        wrong = "--budget needs activations, which are known of models with a loss, under parallel: jit"
        raise RunError(message("plan", wrong, do="Compare plans by --chip, whose headroom leaves them out"))
    if now.device_bytes <= budget * (1 - MARGIN):
        return Choice(config, (), now, budget, ())
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
    changes = _once([*state.changes, *work.changes])
    new = changed(config, {path: value for change in changes for path, value in change.values.items()})
    made = plan_of(new, chip=chip)
    reasons = _reasons(config, changes, chip, made)
    return Choice(None if best is None else new, changes, made, budget, reasons)


# --- what could be otherwise --------------------------------------------------------------------------


def _formats(config: Config) -> Iterator[Change]:
    """Formats of the moments, the more exact first."""
    present = _moments(config)
    now = {} if config.optimizer.storage is None else config.optimizer.storage.fields
    for form in _FORMATS:
        fields = {field: form[field] for field in present}
        if fields and all(now.get(field, "float32") == "float32" for field in fields):
            error = max(ERRORS[name] for name in fields.values())
            yield Change({"optimizer.storage.fields": {**now, **fields}}, error)


def _moments(config: Config) -> list[str]:
    """Fields of the state that are moments."""
    found = plan_rule(build(changed(config, _WHOLE)), make_model(config.model).abstract())
    names = {row.field.split()[-1] for row in found if row.part == "state" and " " in row.field}
    return [field for field in _MOMENTS if field in names]


_WHOLE = {"placement.zero": None, "placement.offload": None, "optimizer.storage": None}


def _divided(config: Config) -> Iterator[Change]:
    place = config.placement
    if place.zero is None and place.mesh.get(place.data_axis, 1) > 1:
        yield Change({"placement.zero": place.data_axis})
    if place.fsdp is None and place.parallel == "jit" and place.mesh.get(place.data_axis, 1) > 1:
        values = {"placement.fsdp": place.data_axis}
        yield Change(values if place.zero else {"placement.zero": place.data_axis, **values})


def _offloaded(config: Config) -> Iterator[Change]:
    if config.placement.offload is None and config.placement.parallel == "jit":
        yield Change({"placement.offload": "*"})


def _micro_batches(config: Config) -> Iterator[Change]:
    train, place = config.train, config.placement
    devices = place.mesh.get(place.data_axis, 1)
    for times in (2, 4, 8):
        count = train.accumulate * times
        if train.batch % (count * devices) == 0:
            yield Change({"train.accumulate": count})
    if train.accumulation == "deferred":
        yield Change({"train.accumulation": "sharded"})


def _remat(config: Config) -> Iterator[Change]:
    if getattr(config.model, "remat", True) is not True:
        yield Change({"model.remat": True})


# --- the choice ---------------------------------------------------------------------------------------


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
    for place in _placements(config):
        for form in (None, *_formats(config)):
            changes = tuple(c for c in (place, form) if c is not None)
            new = _with(config, changes)
            found = None if new is None else _state_plan(new)
            if found is None or new is None:
                continue
            yield _State(
                changes,
                found.part("parameters") + found.part("state"),
                found.part("parameters"),
                _place_of(new),
                form.error if form else 0.0,
                _transfers(found),
            )


def _works(config: Config, chip: str | None) -> Iterator[_Work]:
    for place in _placements(config):
        if place is not None and "placement.offload" in place.values:
            continue  # the same work
        for micro in (None, *_micro_batches(config)):
            for remat in (None, *_remat(config)):
                changes = tuple(c for c in (place, micro, remat) if c is not None)
                new = _with(config, changes)
                found = _planned(config, changes, chip)
                if found is None or new is None:
                    continue
                rest = found.device_bytes - found.part("parameters") - found.part("state")
                yield _Work(changes, rest, _place_of(new), _serial(found) or 0.0)


def _placements(config: Config) -> list[Change | None]:
    return [None, *_divided(config), *_offloaded(config)]


def _transfers(plan: Plan) -> float:
    """Seconds of what travels between devices and hosts in a step."""
    return 2 * plan.offloaded / _TO_HOST


def _place_of(config: Config) -> str:
    place = config.placement
    return f"{place.zero} {place.fsdp}"


def _best(pairs: Iterable[tuple[_State, _Work]], budget: int) -> tuple[_State, _Work] | None:
    """Of all that fit, what costs least; of equal ones the fewer changes."""

    def cost(pair: tuple[_State, _Work]) -> tuple[float, int]:
        state, work = pair
        seconds = (work.seconds + state.transfers) * (1 + state.error**2)
        return seconds, len(_once([*state.changes, *work.changes]))

    room = budget * (1 - MARGIN)
    fitting = [(s, w) for s, w in pairs if s.fits_beside(w) and s.bytes + w.bytes <= room]
    return min(fitting, key=cost, default=None)


def _once(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Each change once."""
    found: dict[str, Change] = {}
    for change in changes:
        found.setdefault(change.line, change)
    return tuple(found.values())


def _reasons(config: Config, changes: tuple[Change, ...], chip: str | None, made: Plan) -> tuple[str, ...]:
    """What each change saves beside the others."""
    found = []
    for change in changes:
        without = _planned(config, [c for c in changes if c is not change], chip)
        saved = 0 if without is None else without.device_bytes - made.device_bytes
        text = f"saves {size(max(saved, 0))} on each device"
        if change.error:
            text += f"; moments are {100 * change.error:.1f} % off after one encoding"
        found.append(text)
    return tuple(found)


# --- plans of changed configurations ------------------------------------------------------------------


def _with(config: Config, changes: Iterable[Change]) -> Config | None:
    """A configuration with changes; None where they do not go together."""
    values = {path: value for change in changes for path, value in change.values.items()}
    try:
        return changed(config, values)
    except (ValueError, ConfigError):
        return None


def _planned(config: Config, changes: Iterable[Change], chip: str | None) -> Plan | None:
    new = _with(config, changes)
    try:
        return None if new is None else plan_of(new, chip=chip)
    except (ValueError, RunError, ConfigError):
        return None  # placement refuses it


def _state_plan(config: Config) -> Plan | None:
    """Of parameters and state alone, without the model's trace."""
    mesh, model = mesh_of(config.placement), make_model(config.model)
    try:
        return plan_rule(build(config, mesh=mesh), placed_params(config, model, mesh), mesh)
    except (ValueError, RunError, ConfigError):
        return None


def _serial(plan: Plan) -> float | None:
    """Seconds of a step of which nothing overlaps."""
    return sum(plan.times.values()) if plan.times else None


def _yaml(value: Any) -> str:
    """A value as a file has it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items()) + "}"
    return {"*": '"*"', "None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


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
