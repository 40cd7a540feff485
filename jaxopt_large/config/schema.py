"""What a run's configuration may say."""

import functools
import inspect
import math
import operator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, create_model, model_validator

from ..rules import adagrad, adam, gradient_descent, lion, rmsprop, sgd
from ._inputs import FLOAT32, Count, Data, Group, Model, Natural, Number, Rate, Seed, misfits

RULES = {
    "gradient_descent": gradient_descent.gradient_descent,
    "sgd": sgd.sgd,
    "adagrad": adagrad.adagrad,
    "rmsprop": rmsprop.rmsprop,
    "adam": adam.adam,
    "adamw": adam.adamw,
    "lion": lion.lion,
}


# --- optimizer ----------------------------------------------------------------------------------------


class WarmupCosine(Group):
    """Linear up, a half cosine down."""

    schedule: Literal["warmup_cosine"]
    peak: Rate
    warmup: Natural
    end: Rate = 0.0


class WarmupStableDecay(Group):
    """Linear up, constant, linear down."""

    schedule: Literal["warmup_stable_decay"]
    peak: Rate
    warmup: Natural
    decay: Natural
    end: Rate = 0.0


class InverseSqrt(Group):
    """Linear up, then down like one over the root of the step."""

    schedule: Literal["inverse_sqrt"]
    peak: Rate
    warmup: Count


Schedule = Annotated[WarmupCosine | WarmupStableDecay | InverseSqrt, Field(discriminator="schedule")]


def _kind_of_rate(value: Any) -> str:
    return "scheduled" if isinstance(value, dict | Group) else "number"


_NUMBER_OR_SCHEDULE = Annotated[
    Annotated[Rate, Tag("number")] | Annotated[Schedule, Tag("scheduled")], Discriminator(_kind_of_rate)
]


def _field(name: str, parameter: inspect.Parameter) -> tuple[Any, Any]:
    """The type and default of one argument of a rule."""
    default = parameter.default
    if name == "learning_rate":
        return (_NUMBER_OR_SCHEDULE, ...)
    if name == "mask" or name.endswith("_dtype"):  # a glob of the leaves that decay; a dtype's name
        return (str | None, None)
    if isinstance(default, bool):
        return (bool, default)
    return (Number | None if default is None else Number, default)


def _rule_model(name: str) -> type[Group]:
    """The schema of a rule, read off its signature: a new rule needs no schema of its own."""
    arguments = inspect.signature(RULES[name]).parameters
    fields: dict[str, Any] = {key: _field(key, parameter) for key, parameter in arguments.items()}
    literal: Any = Literal
    tag = literal[name]
    return create_model(name, __base__=Group, rule=(tag, ...), **fields)


class Frozen(Group):
    """Parameters that stay as they are."""

    rule: Literal["freeze"]


_ANY_RULE: Any = functools.reduce(operator.or_, [*map(_rule_model, RULES), Frozen])


FormatName = Literal["float32", "bfloat16", "float8", "int8", "int4"]


class Storage(Group):
    """Formats of the state's fields, for all parameters or by glob, and of parameters in bfloat16."""

    fields: dict[str, FormatName | dict[str, FormatName]] = Field(default_factory=dict)
    params: Literal["rounded", "split"] | None = None


class Optimizer(Group):
    """Rules by path, how their state is kept, and the guards around them."""

    groups: dict[str, Annotated[_ANY_RULE, Field(discriminator="rule")]] = Field(min_length=1)
    storage: Storage | None = None
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
    params: dict[str, list[str | None]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _axes_exist(self) -> "Placement":
        axes = ", ".join(self.mesh)
        named = [("data_axis", self.data_axis), ("zero", self.zero)]
        named += [(f"params {glob!r}", a) for glob, spec in self.params.items() for a in spec]
        for what, axis in named:
            if axis is not None and axis not in self.mesh:
                raise ValueError(f"{what}: the mesh has no axis {axis!r}; its axes are {axes}")
        for glob, spec in self.params.items():
            given = [axis for axis in spec if axis is not None]
            if len(set(given)) < len(given):
                raise ValueError(f"params {glob!r}: an axis can divide one dimension, {given} has one twice")
        if self.parallel == "pmap":
            if list(self.mesh) != [self.data_axis]:
                raise ValueError(
                    f"pmap takes a mesh with the one axis {self.data_axis!r}; this one has {axes}"
                )
            if self.params:
                raise ValueError("pmap keeps all parameters on every device; params must be empty")
            if self.offload is not None or self.layers is not None:
                raise ValueError("offload and layers are for parallel: jit")
        return self

    @property
    def devices(self) -> int:
        """How many the mesh has places for."""
        return math.prod(self.mesh.values())


class Train(Group):
    """The loop."""

    steps: Count
    batch: Count
    accumulate: Count = 1
    eval_every: Count = 100
    log_every: Count = 1
    checkpoint_every: Count = 500
    keep: Count = 2


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
        misfit = misfits(self.data, self.model)
        if misfit:
            raise ValueError(misfit)
        return self
