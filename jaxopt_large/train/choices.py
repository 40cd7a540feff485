"""What of a configuration could be otherwise, so that it takes less memory."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from .._paths import first_match, leaf_paths, matches
from .._tables import size
from ..config import Config, build, changed
from ..config import abstract_mesh_of as mesh_of
from ..models import make_model
from ..plan import Chip, Plan, duration
from ..plan import plan as plan_rule
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
_TO_HOST = 16e9  # bytes/s between a device and its host
_MOST = 3  # alternatives that are shown, groups that are told apart
_EMBEDDINGS = "*embed*|*head*"
_NORMS = "*norm*"
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
    def globs(self) -> int:
        """How many its values have."""
        return self.line.count('"')

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


def alternatives(config: Config, plan: Plan, *, chip: str | Chip | None) -> list[Alternative]:
    """The cheaper configurations that differ in one line: those that save most, the fastest first."""
    found = []
    exact, everything = itertools.islice(formats(config), 1), itertools.islice(offloaded(config), 1)
    for change in itertools.chain(exact, everything):  # the step's work stays what it is
        new = with_changes(config, [change])
        other = None if new is None else state_plan(new)
        saved = 0 if other is None else plan.part("state") - other.part("state")
        if other is not None and saved > 0:
            found.append(Alternative(change.line, saved, None if chip is None else transfers_of(other)))
    micro = itertools.islice(micro_batches(config), 1)
    for change in itertools.chain(divided(config), micro, remats(config)):
        other = planned_with(config, [change], chip)
        if other is not None and other.device_bytes < plan.device_bytes:
            saved = plan.device_bytes - other.device_bytes
            adds = None if chip is None else (serial(other) or 0.0) - (serial(plan) or 0.0)
            found.append(Alternative(change.line, saved, adds))
    best = sorted(found, key=lambda a: -a.saves)[:_MOST]
    return sorted(best, key=lambda a: (a.seconds or 0.0, -a.saves))


# --- what could be otherwise --------------------------------------------------------------------------


def formats(config: Config) -> Iterator[Change]:
    """Formats of the moments: of all parameters, the more exact first, and then of some and not of others."""
    present = _moments(config)
    now = {} if config.optimizer.storage is None else config.optimizer.storage.fields
    if not present or any(now.get(field, "float32") != "float32" for field in present):
        return
    for form in _FORMATS:
        error = max(ERRORS[form[field]] for field in present)
        yield Change(
            {"optimizer.storage.fields": {**now, **{field: form[field] for field in present}}}, error
        )
    shares = groups_of(config)
    paths = leaf_paths(make_model(config.model).abstract())
    norms = [_NORMS] if len(config.optimizer.groups) == 1 and any(matches(_NORMS, p) for p in paths) else []
    for forms in itertools.product((None, *_FORMATS), repeat=len(shares)) if len(shares) > 1 else ():
        if not any(forms):
            continue
        fields = {
            field: {g: form[field] if form else "float32" for g, form in zip(shares, forms, strict=True)}
            for field in present
        }
        if "nu" in fields:  # as it is without globs
            fields["nu"] = {**dict.fromkeys(norms, "float32"), **fields["nu"]}
        parts = zip(shares.values(), forms, strict=True)
        square = sum(share * max(ERRORS[form[f]] for f in present) ** 2 for share, form in parts if form)
        yield Change({"optimizer.storage.fields": {**now, **fields}}, math.sqrt(square))


def groups_of(config: Config) -> dict[str, float]:
    """Globs over parameters that can be treated differently, and each one's share of their elements.

    Those of the optimizer; of a single one embeddings and heads, and the rest.
    """
    params = make_model(config.model).abstract()
    given = tuple(config.optimizer.groups)
    globs = given if len(given) > 1 else (_EMBEDDINGS, "*")
    found = dict.fromkeys(globs, 0)
    for path, x in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        glob = first_match(globs, path)
        if glob is not None:
            found[glob] += x.size
    largest = sorted(found, key=lambda g: -found[g])[:_MOST]
    if "*" in globs and "*" not in largest:
        largest[-1] = "*"
    whole = max(sum(found.values()), 1)
    shares = {g: n / whole for g, n in found.items() if g in largest and (n or g == "*")}
    rest = 1.0 - sum(shares.values())  # of groups too small to be told apart
    if len(shares) < len(found) or "*" in shares:
        shares["*"] = shares.pop("*", 0.0) + rest
    return shares


def _moments(config: Config) -> list[str]:
    """Fields of the state that are moments."""
    found = plan_rule(build(changed(config, _WHOLE)), make_model(config.model).abstract())
    names = {row.field.split()[-1] for row in found if row.part == "state" and " " in row.field}
    return [field for field in _MOMENTS if field in names]


_WHOLE = {"placement.zero": None, "placement.offload": None, "optimizer.storage": None}


def divided(config: Config) -> Iterator[Change]:
    """State, and then parameters too, divided over the data axis."""
    place = config.placement
    if place.zero is None and place.mesh.get(place.data_axis, 1) > 1:
        yield Change({"placement.zero": place.data_axis})
    if place.fsdp is None and place.parallel == "jit" and place.mesh.get(place.data_axis, 1) > 1:
        values = {"placement.fsdp": place.data_axis}
        yield Change(values if place.zero else {"placement.zero": place.data_axis, **values})


def offloaded(config: Config) -> Iterator[Change]:
    """State in the memory of the host."""
    if config.placement.offload is not None or config.placement.parallel != "jit":
        return
    yield Change({"placement.offload": "*"})
    for glob in groups_of(config):
        if glob != "*":
            parts = (f"*{part.strip().strip('*')}*" for part in glob.split("|"))
            yield Change({"placement.offload": "|".join(parts)})


def micro_batches(config: Config) -> Iterator[Change]:
    """More micro-batches, the fewest first, and sums that are divided."""
    train, place = config.train, config.placement
    devices = place.mesh.get(place.data_axis, 1)
    for times in (2, 4, 8):
        count = train.accumulate * times
        if train.batch % (count * devices) == 0:
            yield Change({"train.accumulate": count})
    if train.accumulation == "deferred":
        yield Change({"train.accumulation": "sharded"})


def remats(config: Config) -> Iterator[Change]:
    """Layers computed again in the backward pass."""
    now = getattr(config.model, "remat", True)
    if now is False:
        yield Change({"model.remat": "dots"})
    if now is not True:
        yield Change({"model.remat": True})


def transfers_of(plan: Plan) -> float:
    """Seconds of what travels between devices and hosts in a step."""
    return 2 * plan.offloaded / _TO_HOST


def once(changes: Iterable[Change]) -> tuple[Change, ...]:
    """Each change once."""
    found: dict[str, Change] = {}
    for change in changes:
        found.setdefault(change.line, change)
    return tuple(found.values())


# --- plans of changed configurations ------------------------------------------------------------------


def with_changes(config: Config, changes: Iterable[Change]) -> Config | None:
    """A configuration with changes; None where they do not go together."""
    values = {path: value for change in changes for path, value in change.values.items()}
    try:
        return changed(config, values)
    except ValueError:
        return None


def planned_with(config: Config, changes: Iterable[Change], chip: str | Chip | None) -> Plan | None:
    """The plan of a configuration with changes; None where placement refuses them."""
    new = with_changes(config, changes)
    try:
        return None if new is None else plan_of(new, chip=chip)
    except ValueError:
        return None  # placement refuses it


def state_plan(config: Config) -> Plan | None:
    """Of parameters and state alone, without the model's trace."""
    mesh, model = mesh_of(config.placement), make_model(config.model)
    try:
        return plan_rule(build(config, mesh=mesh), placed_params(config, model, mesh), mesh)
    except ValueError:
        return None


def serial(plan: Plan) -> float | None:
    """Seconds of a step of which nothing overlaps."""
    return sum(plan.times.values()) if plan.times else None


def _yaml(value: Any) -> str:
    """A value as a file has it, in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(k)}: {_yaml(v)}" for k, v in value.items()) + "}"
    text = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    return text if re.fullmatch(r"[\w.+-]+", text) else f'"{text}"'
