"""The plan of a run that a configuration describes."""

from typing import Any

from jax.sharding import AbstractMesh, AxisType

from ..config import Config, build
from ..models import make_model
from ..plan import Plan
from ..plan import plan as plan_rule
from .shardings import placed_params


def plan_of(config: Config, *, chip: str | None = None) -> Plan:
    """What each device of a run holds of parameters, gradients and state; nothing is allocated.

    Args:
      config: from `load`.
      chip: a name in `jl.plan.CHIPS`.

    Raises:
      RunError: a spec of the configuration does not fit the model.
      ValueError: the chip is unknown.
    """
    placement, sizes = config.placement, config.placement.mesh
    options: dict[str, Any] = {"chip": chip, "accumulate": config.train.accumulate}
    if placement.parallel == "pmap":
        return plan_rule(build(config), make_model(config.model).abstract(), axis_sizes=sizes, **options)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    params = placed_params(config, make_model(config.model), mesh)
    accumulation = config.train.accumulation
    return plan_rule(build(config, mesh=mesh), params, mesh, accumulation=accumulation, **options)
