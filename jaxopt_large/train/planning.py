"""The plan of a run that a configuration describes."""

from typing import Any

from ..config import Config, abstract_mesh_of, build
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
    placement = config.placement
    options: dict[str, Any] = {"chip": chip, "accumulate": config.train.accumulate}
    if placement.parallel == "pmap":
        return plan_rule(
            build(config), make_model(config.model).abstract(), axis_sizes=placement.mesh, **options
        )
    mesh = abstract_mesh_of(placement)
    params = placed_params(config, make_model(config.model), mesh)
    accumulation = config.train.accumulation
    return plan_rule(build(config, mesh=mesh), params, mesh, accumulation=accumulation, **options)
