"""What an array in a state is, wherever in a chain of transforms it stands."""

import collections
from typing import Any

import jax

from ._paths import key_string, leaf_paths, path_string


def identities(tree: Any) -> dict[str, str]:
    """Path of each leaf -> its identity.

    That is the names of the dictionary keys on the way, the class and field that hold it, and what
    comes below the field: "state/ScaleByAdamState.mu/dense/kernel". Positions in tuples and fields of
    wrappers are left out. Leaves that would be the same are numbered in order.
    """
    found: dict[str, str] = {}
    count: collections.Counter[str] = collections.Counter()
    names = [name or "value" for name in leaf_paths(tree)]
    for name, (path, _) in zip(names, jax.tree_util.tree_flatten_with_path(tree)[0], strict=True):
        identity = _identity(tree, path)
        count[identity] += 1
        found[name] = identity if count[identity] == 1 else f"{identity}#{count[identity]}"
    return found


def _identity(tree: Any, path: tuple[Any, ...]) -> str:
    nodes = [tree]
    for key in path[:-1]:
        nodes.append(_child(nodes[-1], key))
    fields = [i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)]
    if not fields or nodes[fields[-1]] is None:
        return path_string(path) or "value"
    last = fields[-1]
    above = [key_string(k) for k in path[:last] if isinstance(k, jax.tree_util.DictKey)]
    field = f"{type(nodes[last]).__name__}.{key_string(path[last])}"
    return "/".join([*above, field, *map(key_string, path[last + 1 :])])


def _child(node: Any, key: Any) -> Any:
    """The part of `node` under `key`; None where a node does not say how to get there."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(node, key.name, None)
    index = key.key if isinstance(key, jax.tree_util.DictKey) else getattr(key, "idx", None)
    try:
        return None if node is None else node[index]
    except (KeyError, IndexError, TypeError):
        return None
