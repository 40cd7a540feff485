"""Who holds a leaf of a state: the class and the field, and the parameter on the leaf's path."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax

from ._encoded import is_encoded
from ._paths import key_string

_LIBRARIES = ("optax", "jaxopt_large")  # whose NamedTuples are states: no model is made of them

Path = tuple[Any, ...]


class Owners:
    """Finds the parameters that a state leaf belongs to: those whose key path is part of its own.

    Args:
      keys: the key path of each parameter.
    """

    def __init__(self, keys: Iterable[Sequence[Any]]):
        self._numbers: dict[tuple[Any, ...], list[int]] = {}
        for i, key in enumerate(keys):
            self._numbers.setdefault(tuple(key), []).append(i)
        self._lengths = sorted({len(key) for key in self._numbers}, reverse=True)

    def of(self, path: Sequence[Any]) -> list[int]:
        """The longest key paths first, then the last on the leaf's.

        >>> Owners([("a",), ("b", "c")]).of(("mu", "b", "c"))
        [1]
        """
        path, found = tuple(path), []
        for length in self._lengths:
            for start in range(len(path) - length, -1, -1):
                found += self._numbers.get(path[start : start + length], ())
        return list(dict.fromkeys(found))

    def first(self, path: Sequence[Any]) -> int | None:
        return next(iter(self.of(path)), None)


def field_and_owner(path: tuple[Any, ...], keys: Sequence[Any], owners: Owners) -> tuple[str, int | None]:
    """The field that holds a leaf, and the parameter it belongs to."""
    owner = owners.first(path)
    around = path[: len(path) - len(keys[owner])] if owner is not None and _ends(path, keys[owner]) else path
    names = [key.name for key in around if isinstance(key, jax.tree_util.GetAttrKey)]
    return (names[-1] if names else ""), owner


def _ends(path: tuple[Any, ...], key: tuple[Any, ...]) -> bool:
    return len(key) == 0 or path[-len(key) :] == key


class Holder(NamedTuple):
    """The innermost state on a leaf's path, and what stands around it.

    Attributes:
      state: its class.
      at: where on the path its field is.
      fixed: dictionary keys around it that belong to classes of no library.
      keys: the others.
    """

    state: type
    at: int
    fixed: tuple[str, ...]
    keys: tuple[str, ...]


def holder(tree: Any, path: Path) -> Holder | None:
    """The state that holds the leaf at `path`; None where no class does."""
    fields = [i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)]
    nodes = [tree]
    for key in path[:-1]:
        nodes.append(_child(nodes[-1], key))
    if not fields or nodes[fields[0]] is None:
        return None
    last, keys, fixed = fields[0], [], []
    around = _dictionary_keys(path[:last])
    (keys if _is_from_library(nodes[last]) else fixed).extend(around)
    for field in fields[1:]:
        between = path[last + 1 : field]
        if not _leads_to_state(nodes[last], path[last].name, between, nodes[field]):
            break
        (keys if _is_from_library(nodes[last]) else fixed).extend(_dictionary_keys(between))
        last = field
    return Holder(type(nodes[last]), last, tuple(fixed), tuple(keys))


def _leads_to_state(parent: Any, field: str, between: Path, child: Any) -> bool:
    """Is `child`, which stands in a field of `parent`, a state again, and not the field's content?

    A library's state holds others where the field's name says so, like `inner_state`, and parameters
    elsewhere, whatever they are made of. Other classes may hold a library's states, or, in a chain,
    states that are called so.
    """
    if not _is_named_tuple(child) or is_encoded(child):
        return False
    if _is_from_library(parent):
        return "inner" in field or "state" in field
    chained = all(isinstance(key, jax.tree_util.SequenceKey) for key in between)
    return _is_from_library(child) or (chained and type(child).__name__.endswith("State"))


def _is_from_library(node: Any) -> bool:
    return _is_named_tuple(node) and type(node).__module__.split(".")[0] in _LIBRARIES


def _is_named_tuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _dictionary_keys(path: Path) -> list[str]:
    return [key_string(key) for key in path if isinstance(key, jax.tree_util.DictKey)]


def _child(node: Any, key: Any) -> Any:
    """The part of `node` under `key`; None where a node does not say how to get there."""
    if isinstance(key, jax.tree_util.GetAttrKey):
        return getattr(node, key.name, None)
    index = key.key if isinstance(key, jax.tree_util.DictKey) else getattr(key, "idx", None)
    try:
        return None if node is None else node[index]
    except (KeyError, IndexError, TypeError):
        return None
