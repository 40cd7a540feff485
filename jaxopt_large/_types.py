"""The words of the contract, as types."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax
from jaxtyping import PyTree

Params: TypeAlias = PyTree  # the model's parameters: any tree of floating arrays
Updates: TypeAlias = PyTree  # gradients on the way in, changes to the parameters on the way out
State: TypeAlias = Any  # whatever a rule's `init` returns

Schedule: TypeAlias = Callable[[jax.Array], Any]  # steps taken so far -> value
Scalar: TypeAlias = Any  # a Python or NumPy number, or a (traced) array of shape ()
ScalarOrSchedule: TypeAlias = Any  # Scalar | Schedule

Rule: TypeAlias = optax.GradientTransformationExtraArgs
AnyRule: TypeAlias = optax.GradientTransformation  # what wrappers accept: optax's rules too


def make_rule(init: Callable[..., Any], update: Callable[..., Any]) -> Rule:
    """A rule of `init(params)` and `update(updates, state, params=None, **extra)`."""
    return optax.GradientTransformationExtraArgs(init, update)
