"""Where a leaf stands in a tree: paths like "layers/0/attn/q", and globs over them."""

import difflib
import fnmatch
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ._errors import Problems

_MOST_SHOWN = 5  # paths named in an error before it says how many more there are


def key_string(key: Any) -> str:
    """One step of a path: a dictionary key, an index or a field name."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def path_string(path: Sequence[Any]) -> str:
    """The steps joined by slashes, without the leading one."""
    return "/".join(key_string(k) for k in path)


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`.

    A Flax NNX variable counts as a leaf of its module: its path ends in the variable's name.

    >>> leaf_paths({"layers": [{"w": 1, "b": 2}]})
    ['layers/0/b', 'layers/0/w']
    """
    paths = [p for p, _ in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]]
    inside = _variable_paths(tree)
    if not inside:
        return [path_string(p) for p in paths]
    return [path_string(next((p[:n] for n in range(len(p)) if p[:n] in inside), p)) for p in paths]


def _variable_paths(tree: Any) -> set[tuple[Any, ...]]:
    """Paths of the Flax NNX variables in `tree`; Flax is looked at only when it is in use."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return set()
    found = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {path for path, leaf in found[0] if isinstance(leaf, nnx.Variable)}


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """`jax.tree.map` whose function takes the leaf's path first."""
    leaves, treedef = jax.tree.flatten(tree)
    others = [treedef.flatten_up_to(r) for r in rest]
    paths = leaf_paths(tree)
    return treedef.unflatten([function(*args) for args in zip(paths, leaves, *others, strict=True)])


def matches(glob: str, path: str) -> bool:
    """Does `path` match one of the alternatives that `|` separates? `*` also crosses slashes.

    >>> matches("*embed*|*head*", "decoder/embedding/w"), matches("*/kernel", "kernel")
    (True, False)
    """
    return any(fnmatch.fnmatchcase(path, part.strip()) for part in glob.split("|"))


def first_match(globs: Sequence[str], path: str) -> str | None:
    """The first glob that matches `path`, or None."""
    return next((g for g in globs if matches(g, path)), None)


def check_glob(problems: Problems, name: str, glob: str | None, paths: Sequence[str], what: str) -> None:
    """Adds a problem if the argument `name` is a glob that matches none of the paths of some things."""
    if glob is not None and paths and not any(matches(glob, path) for path in paths):
        problems.add(
            f"{name} matches no {what}, got {glob!r}", allowed=f"the nearest are {nearest(glob, paths)}"
        )


def nearest(wanted: str, paths: Sequence[str]) -> str:
    """The paths most like `wanted`, for an error message.

    >>> nearest("*kernal", ["dense/kernel", "dense/bias"])
    "'dense/kernel', 'dense/bias'"
    """
    bare = wanted.replace("*", "").strip("/")
    close = difflib.get_close_matches(bare, paths, n=_MOST_SHOWN, cutoff=0.2) or list(paths)
    return listed(close)


def listed(paths: Sequence[str]) -> str:
    """Quoted paths, the first few of them, and how many more there are."""
    shown = ", ".join(repr(p) for p in paths[:_MOST_SHOWN])
    more = len(paths) - _MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown or "none"


def difference(expected: Any, got: Any) -> str:
    """How the leaves of `got` differ from those of `expected`, in words."""
    a, b = leaf_paths(expected), leaf_paths(got)
    ours, theirs = set(a), set(b)
    missing, extra = [p for p in a if p not in theirs], [p for p in b if p not in ours]
    if not missing and not extra:
        return "the same leaves in containers of other types"
    return f"missing {listed(missing)}; unexpected {listed(extra)}"
