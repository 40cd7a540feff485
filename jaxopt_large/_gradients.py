"""Gradients that are not there: None for a leaf that was filtered out, float0 for an integer one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._errors import Problems, message
from ._paths import difference, leaf_paths


def is_missing(g: Any) -> bool:
    """Is there no gradient: None, or what `jax.grad(..., allow_int=True)` returns for integers?"""
    return g is None or getattr(g, "dtype", None) == jax.dtypes.float0


class Gradients(NamedTuple):
    """Gradients in the order of the parameters.

    Attributes:
      leaves: one for each parameter; None where it is missing.
      treedef: with a leaf for each parameter.
    """

    leaves: list[Any]
    treedef: Any

    @property
    def are_all(self) -> bool:
        return all(g is not None for g in self.leaves)

    @property
    def tree(self) -> Any:
        """A tree as rules take it, with None where a gradient is missing."""
        return self.treedef.unflatten(self.leaves)

    def changes(self, made: Any, params: Any) -> list[Any]:
        """The updates that a rule made; where there is none, what leaves the parameter as it is.

        They stay None where `params` are None.
        """
        found = self.treedef.flatten_up_to(made)
        if params is None:
            return found
        leaves = self.treedef.flatten_up_to(params)
        return [no_change(p) if u is None else u for u, p in zip(found, leaves, strict=True)]


def in_order(who: str, updates: Any, params: Any = None, count: int | None = None) -> Gradients:
    """Gradients with None in the place of what is missing.

    Args:
      who: for the error.
      updates: the gradients, as `update` gets them.
      params: the parameters, where `update` gets them.
      count: how many parameters there are, where they are not given.

    Raises:
      ValueError: the trees differ in more than missing gradients.
    """
    if params is not None:
        return Gradients(_beside(who, updates, params), jax.tree.structure(params))
    leaves, treedef = jax.tree.flatten(updates)
    if count is not None and len(leaves) != count:
        return flat_gradients(updates)
    return Gradients([None if is_missing(g) else g for g in leaves], treedef)


def flat_gradients(updates: Any) -> Gradients:
    """Gradients where each None in the tree stands for one that is missing."""
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    return Gradients([None if is_missing(g) else g for g in leaves], treedef)


def present(updates: Any) -> Any:
    """Gradients with None in the place of those of integers."""
    if not any(is_missing(g) for g in jax.tree.leaves(updates)):
        return updates
    return jax.tree.map(lambda g: None if is_missing(g) else g, updates)


def _beside(who: str, updates: Any, params: Any) -> list[Any]:
    """The gradient of each parameter; None where it is missing."""
    treedef = jax.tree.structure(params)
    try:
        found = treedef.flatten_up_to(by_leaf(updates, params))
    except ValueError:
        found = None
    if found is None or any(jax.tree.leaves(g) not in ([], [g]) for g in found if not is_missing(g)):
        raise ValueError(
            message(
                who,
                f"gradients do not have the structure of the params: {difference(params, updates)}",
                do="Pass gradients of the parameters that init was given",
            )
        )
    return [None if is_missing(g) else g for g in found]


def by_leaf(updates: Any, params: Any) -> Any:
    """Gradients with a None for each parameter of a part in the place of which one None stands."""
    if jax.tree.structure(updates) == jax.tree.structure(params):
        return updates

    def widened(g: Any, p: Any) -> Any:
        return jax.tree.map(lambda _: None, p) if g is None else g

    try:
        return jax.tree.map(widened, updates, params, is_leaf=lambda g: g is None)
    except (ValueError, TypeError):  # they part elsewhere: whoever asked says where
        return updates


def add_other_shapes(
    problems: Problems, what: str, leaves: list[Any], shapes: list[tuple[int, ...]], treedef: Any
) -> None:
    """Adds leaves that are there and do not have the shapes of `init`."""
    found = [None if x is None else tuple(jnp.shape(x)) for x in leaves]
    if all(got in (None, want) for got, want in zip(found, shapes, strict=True)):
        return
    paths = leaf_paths(treedef.unflatten(range(len(found))))
    for path, got, want in zip(paths, found, shapes, strict=True):
        if got not in (None, want):
            problems.add(f"{what} has shape {got}", at=path, allowed=f"in init it had {want}")


def no_change(p: Any) -> Any:
    """The update that leaves a parameter as it is, to the bit.

    x + (-0.0) is x, the sign of zero included; x + 0.0 is not.
    """
    return jnp.full_like(p, -0.0) if jnp.issubdtype(jnp.result_type(p), jnp.inexact) else jnp.zeros_like(p)
