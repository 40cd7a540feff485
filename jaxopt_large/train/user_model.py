"""A model of one's own in a plan: a function that returns shapes, and perhaps a loss and a batch."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._errors import message
from .._types import Params, as_leaves
from ..config import Config, abstract_mesh_of, build
from ..plan import Plan
from ..plan import plan as plan_rule
from ._errors import RunError
from .shardings import param_shardings


class UserModel(NamedTuple):
    """What a function of the user's returned.

    Attributes:
      params: shapes.
      loss: (parameters, batch) -> loss, or None.
      batch: shapes, or None.
    """

    params: Params
    loss: Callable[[Params, Any], Any] | None
    batch: Any


def user_model(name: str) -> UserModel:
    """The model of a function, which is run without allocating anything.

    Args:
      name: package.module:function. The function takes nothing and returns parameters, or (parameters, loss,
        batch); arrays that it makes are shapes.

    Raises:
      RunError: there is no such function, it fails, it looks at values, or returns something else.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        wrong = f"model is not understood, got {name!r}"
        raise RunError(message("plan", wrong, do="Write it like package.module:function"))
    if os.getcwd() not in sys.path:  # as `python -m` has it
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError, TypeError) as error:
        wrong = f"model is not found, got {name!r}"
        do = "Start in its folder, or install its package"
        raise RunError(message("plan", wrong, allowed=str(error), do=do)) from None
    except Exception as error:  # what a module raises when it is imported has no common class
        wrong = f"{module} cannot be imported, got {type(error).__name__}: {error}"
        raise RunError(message("plan", wrong)) from None
    kept: list[Any] = []

    def shapes() -> Any:
        made = make()
        if isinstance(made, tuple) and len(made) == 3 and callable(made[1]):
            kept.append(made[1])
            return made[0], made[2]
        return made, None

    try:
        params, batch = jax.eval_shape(lambda: _as_arrays(shapes()))
    except jax.errors.ConcretizationTypeError as error:
        first = str(error).splitlines()[0]
        wrong = f"{name} looks at values, which are not there when shapes are planned, got {first}"
        raise RunError(message("plan", wrong, do="Return jax.ShapeDtypeStructs")) from None
    except Exception as error:  # what the user's function raises has no common class
        wrong = f"{name} failed, got {type(error).__name__}: {error}"
        raise RunError(message("plan", wrong)) from None
    return UserModel(params, kept[0] if kept else None, batch)


def _as_arrays(tree: Any) -> Any:
    """Shapes in a tree as arrays, which `jax.eval_shape` can return; nothing is allocated."""

    def one(x: Any) -> Any:
        return jax.numpy.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x

    return jax.tree.map(one, tree)


def plan_of_model(config: Config, model: UserModel, *, chip: str | None = None) -> Plan:
    """What a run of another model would cost, with a configuration's optimizer and placement."""
    mesh = abstract_mesh_of(config.placement)
    params = as_leaves(model.params)
    if config.placement.parallel == "pmap":
        if model.loss is not None:
            wrong = "a model with a loss is for parallel: jit"
            raise RunError(message("plan", wrong, do="Return the parameters alone"))
        return plan_rule(build(config), params, chip=chip, axis_sizes=config.placement.mesh)
    shardings = param_shardings(config, params, mesh)
    params = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings)
    return plan_rule(
        build(config, mesh=mesh),
        params,
        mesh,
        chip=chip,
        accumulate=config.train.accumulate,
        accumulation=config.train.accumulation,
        loss=model.loss,
        batch=model.batch,
    )
