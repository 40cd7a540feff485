"""The words of the contract, as types."""

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
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

    @functools.wraps(init)
    def begun(params: Any) -> Any:
        return init(as_leaves(params))

    @functools.wraps(update)
    def changed(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return update(as_leaves(updates), state, as_leaves(params), **extra)

    return optax.GradientTransformationExtraArgs(begun, changed)


def as_leaves(tree: Any) -> Any:
    """Python numbers and NumPy values of dtypes that JAX does not have now, as arrays; all else as it is."""
    if not any(map(_is_foreign, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(lambda x: _as_array(x) if _is_foreign(x) else x, tree)


def _is_foreign(x: Any) -> bool:
    if isinstance(x, np.ndarray | np.generic):
        return x.dtype.kind in "fc" and jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype
    return isinstance(x, int | float | complex) and not isinstance(x, bool)


def _as_array(x: Any) -> Any:
    if isinstance(x, np.ndarray | np.generic):
        return jnp.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype))
    return jnp.asarray(x, complex if isinstance(x, complex) else float)
