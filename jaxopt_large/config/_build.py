"""From a configuration to a rule."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh

from .._compat import make_mesh
from .._types import Rule, ScalarOrSchedule
from ..groups import freeze, partition
from ..guards import GUARDS, rollback
from ..hyperparameters import hyperparams, set_hyperparams, with_hyperparams
from ..models import make_model
from ..multipliers import mup, with_multipliers
from ..placement.offload import offload
from ..placement.zero import zero
from ..rules import RULES
from ..safety import clip_by_global_norm, skip_nonfinite
from ..storage.formats import FORMATS, PARAMETER_FORMATS
from ..storage.stored import stored
from ..wrappers.every import WRAPPERS
from ._inputs import Group
from ._schedules import SCHEDULES
from .schema import Config, Placement, Storage

_OUTERMOST = "dynamic_loss_scale"  # of guards: the others see gradients as they are


def build(
    config: Config,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    around: Callable[[Rule], Rule] | None = None,
) -> Rule:
    """The rule of a configuration: groups, storage, guards, clipping, placement, from the inside out.

    Args:
      config: from `load`.
      mesh: the mesh to place state on; by default the configuration's, made of this machine's devices
        if there are enough, else an abstract one, good for `state_shardings`.
      around: a wrapper to put around the guarded rule, below the placement.

    Returns:
      The rule. Under `parallel: pmap` its `init` and `update` belong inside the mapped function.

    Raises:
      ValueError: a rule refuses its settings.
    """
    turned = config.optimizer.adjustable
    groups = config.optimizer.groups.items()
    rules = {glob: _rule(settings, config.train.steps, adjustable=turned) for glob, settings in groups}
    rule = rules["*"] if list(rules) == ["*"] else partition(rules)
    for settings in config.optimizer.wrappers:
        rule = WRAPPERS[settings.wrapper](rule, **_arguments(settings, "wrapper", config.train.steps))
    if config.optimizer.multipliers is not None:
        rule = with_multipliers(rule, **_arguments(config.optimizer.multipliers, "", config.train.steps))
    if config.optimizer.mup is not None:
        given = config.optimizer.mup.model_dump()
        narrow = type(config.model).model_validate(config.model.model_dump() | given.pop("base"))
        rule = mup(rule, make_model(narrow).abstract(), **given)
    if config.optimizer.storage is not None:
        rule = _stored(rule, config.optimizer.storage, config.seed)
    for settings in config.optimizer.guards:
        if settings.guard != _OUTERMOST:
            rule = _guarded(rule, settings, config.train.steps)
    if config.optimizer.clip is not None:
        rule = optax.chain(clip_by_global_norm(config.optimizer.clip), rule)
    if config.optimizer.skip_nonfinite:
        rule = skip_nonfinite(rule)
    for settings in config.optimizer.guards:
        if settings.guard == _OUTERMOST:
            rule = _guarded(rule, settings, config.train.steps)
    if around is not None:
        rule = around(rule)
    placement = config.placement
    if placement.zero is not None and placement.parallel == "pmap":
        rule = zero(rule, axis_name=placement.zero)
    elif placement.zero is not None:
        rule = zero(rule, mesh or mesh_of(placement), axis=placement.zero, layers=placement.layers)
    if config.train.rollback is not None:
        rule = rollback(rule, config.train.rollback)
    if placement.offload is not None:
        rule = offload(rule, placement.offload, layers=placement.layers)
    return rule


def _stored(rule: Rule, storage: Storage, seed: int) -> Rule:
    def formats(given: Any) -> Any:
        if isinstance(given, str):
            return FORMATS[given]()
        return {glob: FORMATS[name]() for glob, name in given.items()}

    params = None if storage.params is None else PARAMETER_FORMATS[storage.params]()
    fields = {field: formats(given) for field, given in storage.fields.items()}
    return stored(rule, params=params, seed=seed, **fields)


def mesh_of(placement: Placement) -> Mesh | AbstractMesh:
    """The mesh that a configuration asks for; abstract where this machine has too few devices."""
    devices = jax.devices()
    if len(devices) < placement.devices:
        return abstract_mesh_of(placement)
    names, sizes = tuple(placement.mesh), tuple(placement.mesh.values())
    return make_mesh(sizes, names, devices=devices[: placement.devices])


def abstract_mesh_of(placement: Placement) -> AbstractMesh:
    """The mesh that a configuration asks for, whatever devices there are."""
    names, sizes = tuple(placement.mesh), tuple(placement.mesh.values())
    return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """Steps taken -> learning rate of the last group that learns; 0 when none does."""
    groups = [g for g in config.optimizer.groups.values() if g.rule != "freeze"]
    given = getattr(groups[-1], "learning_rate", None) if groups else None
    value = 0.0 if given is None else _argument(given, config.train.steps)
    return value if callable(value) else lambda count: value


def learning_rates(config: Config) -> dict[str, ScalarOrSchedule]:
    """The learning rates of all rules and wrappers that have one, by glob and name: numbers and schedules.

    A rule inside another one, for the leaves that the other does not take, follows it.
    """
    found = {}
    for glob, settings in config.optimizer.groups.items():
        for each in (settings, getattr(settings, "other", None)):
            rate = getattr(each, "learning_rate", None)
            if each is not None and rate is not None:
                found[f"{glob}: {each.rule}"] = _argument(rate, config.train.steps)
    for each in config.optimizer.wrappers:
        rate = getattr(each, "learning_rate", None)
        if rate is not None:
            found[f"around: {each.wrapper}"] = _argument(rate, config.train.steps)
    return found


def _rule(settings: Any, steps: int, *, adjustable: bool = False) -> Rule:
    if settings.rule == "freeze":
        return freeze()
    make, given = RULES[settings.rule], _arguments(settings, "rule", steps)
    return with_hyperparams(make, **given) if adjustable else make(**given)


def _guarded(rule: Rule, settings: Any, steps: int) -> Rule:
    """A rule with a guard around it, or with what the gradient goes through before it."""
    make, given = GUARDS[settings.guard], _arguments(settings, "guard", steps)
    if "rule" in inspect.signature(make).parameters:
        return make(rule, **given)
    return optax.chain(make(**given), rule)


def adjusted(state: Any, config: Config) -> Any:
    """A state that was read, with the numbers that the configuration has now.

    What a schedule gives stays with the schedule.
    """
    if not config.optimizer.adjustable:
        return state
    groups = config.optimizer.groups
    alone = list(groups) == ["*"]
    for glob, settings in groups.items():
        there = {} if settings.rule == "freeze" else hyperparams(state)
        there = there if alone else there.get(glob, {})
        given = _arguments(settings, "rule", config.train.steps)
        values = {n: x for n, x in given.items() if n in there and not callable(x)}
        if values:
            chosen = values if alone else {name: {glob: x} for name, x in values.items()}
            state = set_hyperparams(state, **chosen)
    return state


def _arguments(settings: Any, tag: str, steps: int) -> dict[str, Any]:
    return {name: _argument(x, steps) for name, x in settings if name != tag}


def _argument(value: Any, steps: int) -> Any:
    """A setting as the rule takes it."""
    if not isinstance(value, Group):
        return value
    if hasattr(value, "rule"):
        return _rule(value, steps)
    given: dict[str, Any] = {name: _then(x) if isinstance(x, Group) else x for name, x in value}
    return SCHEDULES[given.pop("schedule")](**given, steps=steps)


def _then(schedule: Group) -> Callable[[int], Any]:
    return lambda steps: _argument(schedule, steps)
