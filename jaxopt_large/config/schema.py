"""What a run's configuration may say."""

import functools
import inspect
import math
import operator
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model, model_validator

from .._hyperparameters import FLOATING, RULE, domain_of, domains
from .._partition import names_in
from ..guards import GUARDS
from ..rules import RULES
from ..storage.formats import FORMATS, PARAMETER_FORMATS
from ..wrappers.every import WRAPPERS
from ._inputs import (
    FLOAT32,
    Bytes,
    Count,
    Data,
    Group,
    Model,
    Natural,
    Number,
    Rate,
    Seed,
    is_masked,
    misfits,
)
from ._schedules import SCHEDULES, Then

_literal: Any = Literal  # of names that are found in a list


def _model(tag: str, make: Any, fields: dict[str, Any]) -> type[Group]:
    """A group of settings that its first one, `tag`, names."""
    name = make.__name__
    all_fields: dict[str, Any] = {tag: (_literal[name], ...), **fields}
    return create_model(name, __base__=Group, **all_fields)


def _default(parameter: inspect.Parameter) -> Any:
    return ... if parameter.default is inspect.Parameter.empty else parameter.default


def _any_of(models: Any) -> Any:
    return functools.reduce(operator.or_, models)


# --- optimizer ----------------------------------------------------------------------------------------


def _schedule_model(make: Any) -> type[Group]:
    """The schema of a schedule, read off its signature; what a run knows itself is keyword-only there."""
    hints = get_type_hints(make, include_extras=True)
    given = [p for p in inspect.signature(make).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    types = {p.name: _PLAIN_SCHEDULE if hints[p.name] == Then else hints[p.name] for p in given}
    return _model("schedule", make, {p.name: (types[p.name], _default(p)) for p in given})


def _holds_another(make: Any) -> bool:
    """Has a schedule an argument that is a schedule?"""
    return Then in get_type_hints(make, include_extras=True).values()


_PLAIN: Any = _any_of(_schedule_model(make) for make in SCHEDULES.values() if not _holds_another(make))
_PLAIN_SCHEDULE = Annotated[_PLAIN, Field(discriminator="schedule")]
_SCHEDULE: Any = _any_of(
    [_PLAIN, *(_schedule_model(make) for make in SCHEDULES.values() if _holds_another(make))]
)


def _kind_of_rate(value: Any) -> str:
    return "scheduled" if isinstance(value, dict | Group) else "number"


_NUMBER_OR_SCHEDULE = Annotated[
    Annotated[Rate, Tag("number")]
    | Annotated[Annotated[_SCHEDULE, Field(discriminator="schedule")], Tag("scheduled")],
    Discriminator(_kind_of_rate),
]


def _field(parameter: inspect.Parameter, annotation: Any) -> tuple[Any, Any]:
    """The type and default of one argument of a rule, as a configuration has them."""
    domain, default = domain_of(annotation), _default(parameter)
    if domain is FLOATING and default is not None and not isinstance(default, str | type(...)):
        default = np.dtype(default).name  # as a file has it
    if getattr(domain, "schedule", False):
        return (_NUMBER_OR_SCHEDULE, default)
    if domain is None:  # flags
        return (annotation, default)
    if domain is RULE:
        return (Annotated[_ELEMENTWISE, Field(discriminator="rule")] | None, default)
    plain = getattr(domain, "plain", Number)
    takes_none = default is None or type(None) in get_args(annotation)
    return (plain | None if takes_none else plain, default)


def _rule_model(make: Any) -> type[Group]:
    """The schema of a rule, read off its signature: a new rule needs no schema of its own."""
    return _model("rule", make, _fields(make))


def _fields(make: Any, *without: str) -> dict[str, Any]:
    """The arguments of a rule or a wrapper that a configuration can say: functions it cannot."""
    hints = get_type_hints(make, include_extras=True)
    arguments = {n: p for n, p in inspect.signature(make).parameters.items() if n not in without}
    return {n: _field(p, hints[n]) for n, p in arguments.items() if get_origin(hints[n]) is not Callable}


class Frozen(Group):
    """Parameters that stay as they are."""

    rule: Literal["freeze"]


def _takes_another(make: Any) -> bool:
    """Has a rule an argument that is a rule?"""
    return RULE in domains(make).values()


_MODELS = {name: _rule_model(make) for name, make in RULES.items() if not _takes_another(make)}
_ELEMENTWISE: Any = _any_of([*_MODELS.values(), Frozen])
_MODELS |= {name: _rule_model(make) for name, make in RULES.items() if _takes_another(make)}
_ANY_RULE: Any = _any_of([*(_MODELS[name] for name in RULES), Frozen])


_WRAPPERS: Any = _any_of([_model("wrapper", make, _fields(make, "rule")) for make in WRAPPERS.values()])


_GUARDS: Any = _any_of(
    [_model("guard", make, _fields(make, "rule", "axis_name")) for make in GUARDS.values()]
)


class Multipliers(Group):
    """Learning rates in proportion: by path, and by depth in a stack of layers."""

    lr: dict[str, Annotated[float, Field(ge=0, le=FLOAT32)]] = Field(default_factory=dict)
    layers: str | None = None  # glob of what is stacked along a first axis of layers
    layer_decay: Annotated[float, Field(gt=0, le=FLOAT32)] | None = None  # from one layer to the one before

    @model_validator(mode="after")
    def _go_together(self) -> "Multipliers":
        if (self.layers is None) != (self.layer_decay is None):
            raise ValueError("layers and layer_decay go together")
        return self


class Mup(Group):
    """Learning rates by width: those of a narrower model of the same kind hold for this one."""

    base: Annotated[
        dict[str, Count], Field(min_length=1)
    ]  # what of the model is narrower, such as {width: 64}
    optimizer: Literal["adam", "sgd"] = "adam"
    transposed: str | None = None  # glob of matrices that are (out, in)
    layers: str | None = None  # glob of what is stacked along a first axis


FormatName = _literal[tuple(FORMATS)]


class Storage(Group):
    """Formats of the state's fields, for all parameters or by glob, and of parameters in bfloat16."""

    fields: dict[str, FormatName | dict[str, FormatName]] = Field(default_factory=dict)
    params: _literal[tuple(PARAMETER_FORMATS)] | None = None


class Optimizer(Group):
    """Rules by path, how their state is kept, and the guards around them."""

    groups: dict[str, Annotated[_ANY_RULE, Field(discriminator="rule")]] = Field(min_length=1)
    adjustable: bool = False  # are numbers of rules in the state, to be set while a run goes on?
    wrappers: list[Annotated[_WRAPPERS, Field(discriminator="wrapper")]] = Field(default_factory=list)
    multipliers: Multipliers | None = None
    mup: Mup | None = None
    storage: Storage | None = None
    guards: list[Annotated[_GUARDS, Field(discriminator="guard")]] = Field(default_factory=list)
    clip: Annotated[float, Field(gt=0, le=FLOAT32)] | None = None
    skip_nonfinite: bool = True


# --- placement and run --------------------------------------------------------------------------------


class Placement(Group):
    """Devices, and what is divided over them."""

    parallel: Literal["jit", "pmap"] = "jit"
    mesh: dict[str, Count] = Field(default={"data": 1}, min_length=1)
    data_axis: str = "data"
    zero: str | None = None
    layers: str | None = None  # glob of parameters stacked along a first axis of layers
    offload: str | None = None  # glob over state paths: what is kept in the host's memory
    params: dict[str, list[str | list[str] | None]] = Field(default_factory=dict)
    fsdp: str | None = None  # the data axis: it divides large matrices, whatever divides them already

    @model_validator(mode="after")
    def _axes_exist(self) -> "Placement":
        axes = ", ".join(self.mesh)
        named = [("data_axis", self.data_axis), ("zero", self.zero), ("fsdp", self.fsdp)]
        given = {glob: [a for part in spec for a in names_in(part)] for glob, spec in self.params.items()}
        named += [(f"params {glob!r}", axis) for glob, axes in given.items() for axis in axes]
        for what, axis in named:
            if axis is not None and axis not in self.mesh:
                raise ValueError(f"{what}: the mesh has no axis {axis!r}; its axes are {axes}")
        for glob, axes_of_glob in given.items():
            if len(set(axes_of_glob)) < len(axes_of_glob):
                raise ValueError(
                    f"params {glob!r}: an axis can divide one dimension, {axes_of_glob} has one twice"
                )
        if self.fsdp not in (None, self.data_axis):
            raise ValueError(
                f"fsdp: parameters are divided over the data axis, {self.data_axis!r}, got {self.fsdp!r}; "
                "for others there is params"
            )
        if self.parallel == "pmap":
            if list(self.mesh) != [self.data_axis]:
                raise ValueError(
                    f"pmap takes a mesh with the one axis {self.data_axis!r}; this one has {axes}"
                )
            if self.params or self.fsdp:
                raise ValueError("pmap keeps all parameters on every device; params and fsdp must be empty")
            if self.offload is not None or self.layers is not None:
                raise ValueError("offload and layers are for parallel: jit")
        return self

    @property
    def devices(self) -> int:
        """How many the mesh has places for."""
        return math.prod(self.mesh.values())


class Privacy(Group):
    """Differential privacy: each step's gradient is of a Poisson sample, clipped by example, with noise."""

    clip: Annotated[float, Field(gt=0, le=FLOAT32)]  # of an example's gradient
    noise_multiplier: Rate | None = None  # the noise's deviation over the clip
    epsilon: Annotated[float, Field(gt=0, le=FLOAT32)] | None = None  # or what train.steps may spend
    delta: Annotated[float, Field(gt=0, lt=1)]
    method: Literal["pld", "rdp"] = "pld"
    microbatch: Count | None = None  # examples whose gradients are in memory at a time
    seed: Seed | None = None  # null: a secret of the run's own; a number is for tests alone

    @model_validator(mode="after")
    def _one_of_two(self) -> "Privacy":
        if (self.noise_multiplier is None) == (self.epsilon is None):
            raise ValueError("give one of noise_multiplier and epsilon")
        return self


class Checkpoint(Group):
    """How checkpoints are written, and which of them stay beside the newest."""

    background: bool = True  # while the run goes on
    host_bytes: Bytes | None = None  # of each process's memory for copies; null: for all of the state
    keep_every_hours: Annotated[float, Field(gt=0, le=FLOAT32)] | None = None
    keep_best: Natural = 0
    metric: Literal["validation_loss", "validation_accuracy"] = "validation_loss"


class Train(Group):
    """The loop."""

    steps: Count
    batch: Count
    accumulate: Count = 1
    accumulation: Literal["sharded", "deferred"] = "sharded"
    eval_every: Count = 100
    log_every: Count = 1
    checkpoint_every: Count = 500
    keep: Count = 2
    rollback: Count | None = None  # steps between snapshots that are taken back when a guard gives up
    max_epsilon: Annotated[float, Field(gt=0, le=FLOAT32)] | None = (
        None  # with privacy: ends before more is spent
    )
    checkpoint: Checkpoint = Checkpoint()


def _off(value: Any) -> Any:
    return "off" if value is False else value  # as YAML reads it without quotes


class Config(Group):
    """A run."""

    name: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # of a folder
    seed: Seed = 0
    distributed: Annotated[Literal["off", "auto"], BeforeValidator(_off)] = "off"
    data: Data
    model: Model
    optimizer: Optimizer
    placement: Placement = Placement()
    privacy: Privacy | None = None
    train: Train

    @model_validator(mode="after")
    def _batch_divides(self) -> "Config":
        size = self.placement.mesh[self.placement.data_axis]
        parts = size * self.train.accumulate
        if self.train.batch % parts:
            raise ValueError(
                f"train.batch: {self.train.batch} is not divisible by {parts} "
                f"({size} devices along {self.placement.data_axis!r} x {self.train.accumulate} accumulated)"
            )
        if self.train.accumulation == "deferred":
            self._check_deferred()
        guards = [guard.guard for guard in self.optimizer.guards]
        if "dynamic_loss_scale" in guards and (self.train.accumulation == "deferred" or self.privacy):
            raise ValueError("optimizer.guards: dynamic_loss_scale goes with neither deferred nor privacy")
        if self.privacy is not None:
            self._check_private()
        elif self.train.max_epsilon is not None:
            raise ValueError("train.max_epsilon: there is no privacy to spend; add the group privacy")
        if self.train.rollback is not None and "skip_spikes" not in guards:
            raise ValueError(
                "train.rollback: no guard gives up; add {guard: skip_spikes} to optimizer.guards"
            )
        if self.train.rollback is not None and self.privacy is not None:
            raise ValueError(
                "train.rollback: steps that are taken back would still be spent; leave out privacy"
            )
        if self.optimizer.mup is not None:
            unknown = self.optimizer.mup.base.keys() - type(self.model).model_fields.keys()
            if unknown:
                raise ValueError(f"optimizer.mup.base: the model has no {', '.join(sorted(unknown))}")
        misfit = misfits(self.data, self.model)
        if misfit:
            raise ValueError(misfit)
        return self

    def _check_private(self) -> None:
        if self.train.accumulate > 1:
            do = "privacy.microbatch bounds the memory of a step"
            raise ValueError(
                f"train.accumulate: a private step is of one draw, got {self.train.accumulate}; {do}"
            )
        if self.data.kind == "mixture" or is_masked(self.data):
            raise ValueError("privacy: examples of a mixture, or packed ones, are not what is drawn")

    def _check_deferred(self) -> None:
        placement = self.placement
        if placement.parallel == "pmap":
            raise ValueError("train.accumulation: pmap reduces once as it is; deferred is for parallel: jit")
        axis = placement.data_axis
        divided = [glob for glob, spec in placement.params.items() if any(axis in names_in(a) for a in spec)]
        if placement.fsdp == axis or divided:
            what = "fsdp" if placement.fsdp == axis else f"params {divided[0]!r}"
            raise ValueError(
                f"train.accumulation: deferred needs parameters that {axis!r} does not divide; {what} does: "
                "take sharded"
            )
