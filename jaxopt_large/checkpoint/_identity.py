"""What an array in a state is, wherever in a chain of transforms it stands."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax

from .._owners import Path, holder
from .._paths import leaf_paths, path_string


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
    from states by what holds them. An array in no class is known by its path.
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


def _identity(tree: Any, path: Path, name: str) -> Identity:
    found = holder(tree, path)
    first = next((i for i, key in enumerate(path) if isinstance(key, jax.tree_util.GetAttrKey)), 0)
    if found is None or len(path_string(path[:first])) >= len(name):
        return Identity(name)
    inside = name[len(path_string(path[: found.at + 1])) + 1 :]  # a Flax variable ends the name, not the path
    here = f"{found.state.__name__}.{path[found.at].name}"
    return Identity("/".join([*found.fixed, here, *([inside] if inside else [])]), found.keys)
