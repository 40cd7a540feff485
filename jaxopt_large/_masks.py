"""Which leaves a rule acts on: masks of booleans, and what people write in their place."""

from typing import Any

import jax
import numpy as np

from ._errors import Problems
from ._paths import check_glob, key_string, leaf_paths, matches
from ._static import is_placeholder

_ALLOWED = (
    "a glob over paths, booleans in a tree like the parameters or a prefix of one, or a function to one"
)


def spread(who: str, mask: Any, params: Any, tree: Any, *, at_init: bool = False) -> list[bool]:
    """The mask's value for each leaf of a tree.

    Args:
      who: for errors.
      mask: None for all leaves; a glob; a tree of booleans with the keys of `tree`, or a prefix of one; or a
        function from `params` to one of these.
      params: what a function is called with.
      tree: with leaves in the order of the result.
      at_init: whether a glob must match a leaf; the parameters may be there in parts later.

    Raises:
      TypeError: an entry is not a boolean.
      ValueError: keys of the mask and of the tree differ, or a glob matches nothing.
    """
    if callable(mask) and not isinstance(mask, bool):
        mask = mask(params)
    if mask is None or is_placeholder(tree):
        return [True] * len(jax.tree.leaves(tree))
    if isinstance(mask, str):
        paths = leaf_paths(tree)
        problems = Problems(who)
        if at_init:
            check_glob(problems, "mask", mask, paths, "parameter")
        problems.raise_if_any()
        return [matches(mask, path) for path in paths]
    types, problems, found = Problems(who), Problems(who), []
    _walk(mask, tree, (), found, types, problems)
    types.raise_if_any(TypeError)
    problems.raise_if_any()
    return found


def _walk(
    mask: Any, tree: Any, path: tuple[str, ...], found: list[bool], types: Problems, problems: Problems
) -> None:
    at = "/".join(path) or "the root"
    ours = _children(mask)
    if ours is None:
        value = _truth(mask)
        if value is None:
            types.add(f"the mask holds no boolean, got {_short(mask)}", at=at, allowed=_ALLOWED)
        found += [bool(value)] * len(jax.tree.leaves(tree))
        return
    inner = _children(tree)
    if inner is not None and not jax.tree.leaves(tree):
        return  # a leaf of another group, or None
    if inner is None:
        problems.add(f"the mask has entries below a leaf, got {_short(mask)}", at=at, allowed=_ALLOWED)
        return
    theirs = {key: child for key, child in inner.items() if jax.tree.leaves(child)}
    absent = [key for key in theirs if key not in ours]
    extra = [key for key in ours if key not in inner]
    for key in absent:
        problems.add("the mask has no entry", at="/".join((*path, key)), allowed=_ALLOWED)
    for key in extra:
        place = "/".join((*path, key))
        problems.add("the mask has an entry where there is no parameter", at=place, allowed=_ALLOWED)
    for key, child in theirs.items():
        if key in ours:
            _walk(ours[key], child, (*path, key), found, types, problems)


def _children(x: Any) -> dict[str, Any] | None:
    """Key -> child of a node; None for a leaf."""
    pairs = jax.tree_util.tree_flatten_with_path(x, is_leaf=lambda y: y is not x)[0]
    if len(pairs) == 1 and not pairs[0][0]:
        return None
    return {key_string(path[0]): child for path, child in pairs}


def _truth(x: Any) -> bool | None:
    """A boolean, Python's, NumPy's or JAX's; None for all else."""
    if isinstance(x, bool | np.bool_):
        return bool(x)
    if getattr(x, "dtype", None) == np.bool_ and getattr(x, "shape", None) == ():
        try:
            return bool(x)
        except jax.errors.ConcretizationTypeError:
            return None
    return None


def _short(x: Any) -> str:
    text = repr(x)
    return text if len(text) <= 60 else f"a {type(x).__name__}"
