"""What an array in a state is, wherever in a chain of transforms it stands."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax

from ._encoded import is_encoded
from ._paths import key_string, leaf_paths, path_string

_LIBRARIES = ("optax", "jaxopt_large")  # whose NamedTuples are states: no model is made of them

Path = tuple[Any, ...]


class Identity(NamedTuple):
    """What an array is, and what tells it from others that are the same.

    Attributes:
      name: the class and the field of the state that holds it, and what comes below the field:
        "ScaleByAdamState.mu/dense/kernel".
      keys: the dictionary keys of what stands around that state: those of the tree that was saved,
        the globs of a `partition`.
    """

    name: str
    keys: tuple[str, ...] = ()


def identities(tree: Any) -> dict[str, Identity]:
    """Path of each leaf -> its identity. Positions in tuples and fields of wrappers are left out.

    States are NamedTuples, as optax has them; below the last of them on a leaf's path begins what the
    state keeps, shaped like the parameters or not. Parameters that are NamedTuples themselves are told
    from states by what holds them, see `_leads_to_state`. An array in no class is known by its path.
    """
    names = [name or "value" for name in leaf_paths(tree)]
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return {name: _identity(tree, path, name) for name, path in zip(names, paths, strict=True)}


def matched(
    saved: Mapping[str, Identity], wanted: Mapping[str, Identity]
) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Which saved array each wanted one is, and which it may be where that cannot be told.

    Those with the same keys first, then those with the same name. Where there are as many saved as
    wanted they match in order; where not, there is no telling which were added or removed.

    >>> adam, wrapped = Identity("ScaleByAdamState.mu/w"), Identity("ScaleByAdamState.mu/w", ("*",))
    >>> matched({"0/mu/w": adam}, {"inner_states/*/0/mu/w": wrapped})
    ({'inner_states/*/0/mu/w': '0/mu/w'}, {})
    >>> matched({"0/mu/w": adam, "1/mu/w": adam}, {"0/mu/w": adam})
    ({}, {'0/mu/w': ('0/mu/w', '1/mu/w')})
    """
    pairs: dict[str, str] = {}
    old, new = dict(saved), dict(wanted)
    for level in (lambda identity: identity, lambda identity: identity.name):
        before, after = _grouped(old, level), _grouped(new, level)
        for what in after.keys() & before.keys():
            if len(after[what]) == len(before[what]):
                pairs.update(zip(after[what], before[what], strict=True))
        taken = set(pairs.values())
        old = {name: identity for name, identity in old.items() if name not in taken}
        new = {name: identity for name, identity in new.items() if name not in pairs}
    left = _grouped(old, lambda identity: identity.name)
    return pairs, {name: tuple(left[i.name]) for name, i in new.items() if i.name in left}


def _grouped(found: Mapping[str, Identity], level: Callable[[Identity], Hashable]) -> dict[Any, list[str]]:
    groups: dict[Any, list[str]] = {}
    for name, identity in found.items():
        groups.setdefault(level(identity), []).append(name)
    return groups


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


def _identity(tree: Any, path: Path, name: str) -> Identity:
    found = holder(tree, path)
    first = next((i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)), 0)
    if found is None or len(path_string(path[:first])) >= len(name):
        return Identity(name)
    inside = name[len(path_string(path[: found.at + 1])) + 1 :]  # a Flax variable ends the name, not the path
    here = f"{found.state.__name__}.{path[found.at].name}"
    return Identity("/".join([*found.fixed, here, *([inside] if inside else [])]), found.keys)


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
