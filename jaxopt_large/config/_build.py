"""From a configuration to a rule."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh

from .._compat import make_mesh
from .._types import Rule, ScalarOrSchedule
from ..groups import freeze, partition
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


def build(
    config: Config,
    *,
    mesh: Mesh | AbstractMesh | None = None,
    around: Callable[[Rule], Rule] | None = None,
) -> Rule:
    """The rule of a configuration: groups, storage, clipping, guard, placement, from the inside out.

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
    rules = {glob: _rule(settings, config.train.steps) for glob, settings in config.optimizer.groups.items()}
    rule = rules["*"] if list(rules) == ["*"] else partition(rules)
    for settings in config.optimizer.wrappers:
        rule = WRAPPERS[settings.wrapper](rule, **_arguments(settings, "wrapper", config.train.steps))
    if config.optimizer.storage is not None:
        rule = _stored(rule, config.optimizer.storage, config.seed)
    if config.optimizer.clip is not None:
        rule = optax.chain(clip_by_global_norm(config.optimizer.clip), rule)
    if config.optimizer.skip_nonfinite:
        rule = skip_nonfinite(rule)
    if around is not None:
        rule = around(rule)
    placement = config.placement
    if placement.zero is not None and placement.parallel == "pmap":
        return zero(rule, axis_name=placement.zero)
    if placement.zero is not None:
        rule = zero(rule, mesh or mesh_of(placement), axis=placement.zero, layers=placement.layers)
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


def _rule(settings: Any, steps: int) -> Rule:
    if settings.rule == "freeze":
        return freeze()
    return RULES[settings.rule](**_arguments(settings, "rule", steps))


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
