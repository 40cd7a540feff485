"""The plan of a run that a configuration describes."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .._errors import Problems
from .._partition import all_names
from ..config import Config, MlpModel, abstract_mesh_of, build, is_masked, mesh_of
from ..models import make_model
from ..plan import Chip, Plan
from ..plan.memory import Work, planned
from ._errors import RunError
from .execution import JitExecution


def plan_of(config: Config, *, chip: str | Chip | None = None) -> Plan:
    """What each device of a run holds of parameters, gradients and state; nothing is allocated.

    Args:
      config: from `load`.
      chip: one of `jl.plan.CHIPS`, or its name; by default the devices that are here, if there are enough.

    Raises:
      RunError: a spec of the configuration does not fit the model.
      ValueError: the chip is unknown.
    """
    placement = config.placement
    options: dict[str, Any] = {"chip": chip, "accumulate": config.train.accumulate}
    model = make_model(config.model)
    if placement.parallel == "pmap":
        sizes = placement.mesh
        return planned(
            build(config),
            model.abstract(),
            None,
            axis_sizes=sizes,
            accumulation="sharded",
            work=None,
            **options,
        )
    mesh = mesh_of(placement) if chip is None else abstract_mesh_of(placement)
    run = JitExecution(config, model, build(config, mesh=mesh), mesh)
    _check_axes(config, run.params)
    work = None if model.loss is None else _work_of(config, run, mesh)
    return planned(
        run.rule,
        run.params,
        mesh,
        accumulation=config.train.accumulation,
        axis_sizes=None,
        work=work,
        **options,
    )


def _check_axes(config: Config, params: Any) -> None:
    """Raises RunError where the mesh has an axis that divides neither batches nor parameters nor state."""
    place, problems = config.placement, Problems("plan")
    used = {place.data_axis, place.zero, place.fsdp}
    used |= {name for x in jax.tree.leaves(params) for name in all_names(x.sharding.spec)}
    for name, size in place.mesh.items():
        if size > 1 and name not in used:
            do = f"Leave it out, or divide parameters over it: placement.params: {{...: [{name}]}}"
            problems.add(f"mesh has an axis that nothing uses, got {name}={size}", do=do)
    problems.raise_if_any(RunError)


def _work_of(config: Config, run: JitExecution, mesh: Any) -> Work:
    """What a run asks of its model."""

    def gradient(params: Any, batch: Any, axes: tuple[str, ...], shardings: Any) -> Any:
        del axes, shardings  # the run knows
        return run.gradient(params, batch)

    def micro(axes: tuple[str, ...]) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape[1:], x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*x.sharding.spec[1:]))
            ),
            batch(axes),
        )

    def batch(axes: tuple[str, ...]) -> Any:
        del axes
        return abstract_batch(config, mesh)

    return Work(gradient, batch, run.objective, micro)


def abstract_batch(config: Config, mesh: Any) -> Any:
    """The shapes of a step's batch, with its micro-batches along a first axis, and its sharding."""
    train, place = config.train, NamedSharding(mesh, PartitionSpec(None, config.placement.data_axis))
    rows = (train.accumulate, train.batch // train.accumulate)
    context = getattr(config.data, "context", 0)
    if isinstance(config.model, MlpModel):
        shapes = {"features": ((*rows, config.model.inputs), jnp.float32), "labels": (rows, jnp.int32)}
    else:
        shapes = {"tokens": ((*rows, context + 1), jnp.int32)}
        if is_masked(config.data):
            shapes["mask"] = ((*rows, context), jnp.bool_)
    return {k: jax.ShapeDtypeStruct(shape, dtype, sharding=place) for k, (shape, dtype) in shapes.items()}
