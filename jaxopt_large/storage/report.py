"""How well a state's codes are used, measured."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._encoded import Encoded, is_encoded
from .._errors import Problems, message
from .._nodes import own_arrays
from .._paths import path_string
from .._tables import Table
from .._types import State


class Usage(NamedTuple):
    """Of one encoded leaf.

    Attributes:
      path: in the state.
      format: its name.
      saturated: share of elements with the largest code: one in 128 is the largest of its block.
      smallest: share of elements with the code nearest to 0.
      least_scale: the smallest scale of a block, NaN without scales.
      most_scale: the largest.
      error: relative to the shadow, the root of the mean square; NaN without one.
    """

    path: str
    format: str
    saturated: float
    smallest: float
    least_scale: float
    most_scale: float
    error: float


class StorageReport(Table):
    """One `Usage` per encoded leaf; printed, a table."""

    columns = ("path", "format", "saturated", "smallest", "scales", "error")
    ruled = False

    def cell(self, row: Usage, column: str) -> str:
        """What is printed of a row in a column."""
        if column == "scales":
            return "-" if np.isnan(row.least_scale) else f"{row.least_scale:.1e} to {row.most_scale:.1e}"
        if column in ("saturated", "smallest", "error"):
            share = getattr(row, column)
            return "-" if np.isnan(share) else f"{share:.2%}"
        return super().cell(row, column)


def storage_report(state: State, shadow: State | None = None) -> StorageReport:
    """Measures the codes of every encoded leaf of a state.

    Args:
      state: of a rule with `stored` in it, concrete.
      shadow: what the state would be in float32: the decoded tree's structure, like that of the same rule
        without `stored`, run beside it. With it the error of each leaf is measured.

    Returns:
      One `Usage` per leaf.

    Raises:
      ValueError: the shadow has other leaves than the state.
      TypeError: the state holds shapes or is traced.

    >>> rule = jl.stored(jl.adam(1e-3), nu=jl.int8())
    >>> params = {"w": jnp.ones((64, 128))}
    >>> _, state = rule.update(params, rule.init(params), params)
    >>> report = jl.storage_report(state)
    >>> report[0].path, report[0].saturated
    ('inner/0/nu/w', 1.0)
    """
    nodes = _inner_leaves(state)
    if any(isinstance(x, jax.ShapeDtypeStruct | jax.core.Tracer) for x in jax.tree.leaves(state)):
        raise TypeError(message("storage_report", "the state has no values", do="Pass arrays, outside jit"))
    truths = [None] * len(nodes) if shadow is None else jax.tree.leaves(shadow)
    if len(nodes) != len(truths):
        wrong = f"the shadow has {len(truths)} leaves"
        raise ValueError(message("storage_report", wrong, allowed=f"the state has {len(nodes)}"))
    problems = Problems("storage_report")
    for (path, x), truth in zip(nodes, truths, strict=True):
        if is_encoded(x) and truth is not None and jnp.shape(truth) != x.codes.shape:
            got, at = jnp.shape(truth), path_string(path)
            problems.add(f"the shadow has shape {got}", at=at, allowed=f"the state has {x.codes.shape}")
    problems.raise_if_any()
    return StorageReport(
        _usage(path_string(path), x, truth)
        for (path, x), truth in zip(nodes, truths, strict=True)
        if is_encoded(x)
    )


def _inner_leaves(state: State) -> list[tuple[Any, Any]]:
    """Path and leaf of all that is not a wrapper's own."""
    found, at, own = [], 0, own_arrays(state)
    for path, node in jax.tree_util.tree_flatten_with_path(state, is_leaf=is_encoded)[0]:
        if not own[at]:
            found.append((path, node))
        at += len(jax.tree.leaves(node))
    return found


def _usage(path: str, x: Encoded, truth: Any) -> Usage:
    size = jnp.abs(x.codes.astype(jnp.float32))
    scales = np.full(1, np.nan) if x.scales is None else np.asarray(x.scales)
    error = np.nan if truth is None else float(_relative(x.format.decode(x), truth))
    return Usage(
        path,
        x.format.name,
        float(jnp.mean(size == jnp.max(size))),
        float(jnp.mean(size == jnp.min(size))),
        float(scales.min()),
        float(scales.max()),
        error,
    )


def _relative(got: Array, want: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(got - want)) / jnp.maximum(jnp.sum(jnp.square(want)), 1e-37))
