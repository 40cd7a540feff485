"""From a configuration to a rule."""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh

from .._compat import make_mesh
from .._paths import map_with_path, matches
from .._types import Params, Rule, ScalarOrSchedule
from ..groups import freeze, partition
from ..placement.offload import offload
from ..placement.zero import zero
from ..safety import clip_by_global_norm, skip_nonfinite
from ..schedules import inverse_sqrt, warmup_cosine_decay_schedule, warmup_stable_decay
from ..storage.bfloat16 import bfloat16
from ..storage.float8 import float8
from ..storage.float32 import float32
from ..storage.int4 import int4
from ..storage.int8 import int8
from ..storage.parameters import rounded, split
from ..storage.stored import stored
from .schema import RULES, Config, InverseSqrt, Placement, Storage, WarmupCosine, WarmupStableDecay


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


_FORMATS = {"float32": float32, "bfloat16": bfloat16, "float8": float8, "int8": int8, "int4": int4}
_PARAMETER_FORMATS = {"rounded": rounded, "split": split}


def _stored(rule: Rule, storage: Storage, seed: int) -> Rule:
    def formats(given: Any) -> Any:
        if isinstance(given, str):
            return _FORMATS[given]()
        return {glob: _FORMATS[name]() for glob, name in given.items()}

    params = None if storage.params is None else _PARAMETER_FORMATS[storage.params]()
    fields = {field: formats(given) for field, given in storage.fields.items()}
    return stored(rule, params=params, seed=seed, **fields)


def mesh_of(placement: Placement) -> Mesh | AbstractMesh:
    """The mesh that a configuration asks for; abstract where this machine has too few devices."""
    names, sizes = tuple(placement.mesh), tuple(placement.mesh.values())
    devices = jax.devices()
    if len(devices) < placement.devices:
        return AbstractMesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    return make_mesh(sizes, names, devices=devices[: placement.devices])


def learning_rate(config: Config) -> Callable[[Any], Any]:
    """Steps taken -> learning rate of the last group that learns; 0 when none does."""
    groups = [g for g in config.optimizer.groups.values() if g.rule != "freeze"]
    value = _learning_rate(groups[-1].learning_rate, config.train.steps) if groups else 0.0
    return value if callable(value) else lambda count: value


def _rule(settings: Any, steps: int) -> Rule:
    if settings.rule == "freeze":
        return freeze()
    arguments = {name: getattr(settings, name) for name in type(settings).model_fields if name != "rule"}
    arguments["learning_rate"] = _learning_rate(arguments["learning_rate"], steps)
    if arguments.get("mask") is not None:
        arguments["mask"] = _mask(arguments["mask"])
    return RULES[settings.rule](**arguments)


def _learning_rate(value: Any, steps: int) -> ScalarOrSchedule:
    if isinstance(value, WarmupCosine):
        # optax wants a decay that outlasts the warm-up
        return warmup_cosine_decay_schedule(
            0.0, value.peak, value.warmup, max(steps, value.warmup + 1), value.end
        )
    if isinstance(value, WarmupStableDecay):
        stable = max(0, steps - value.warmup - value.decay)
        return warmup_stable_decay(
            value.peak,
            warmup_steps=value.warmup,
            stable_steps=stable,
            decay_steps=value.decay,
            end_value=value.end,
        )
    if isinstance(value, InverseSqrt):
        return inverse_sqrt(value.peak, warmup_steps=value.warmup)
    return value


def _mask(glob: str) -> Any:
    def decays(params: Params) -> Any:
        return map_with_path(lambda path, _: matches(glob, path), params)

    return decays
