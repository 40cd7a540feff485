"""What is different between two configurations."""

from collections.abc import Mapping
from typing import Any

import yaml

from ._yaml import Location, dotted


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs: its path, the old value and the new one, as YAML has them.

    Settings that are `null` count as those that are not there.

    >>> changes({"optimizer": {"clip": None}, "seed": 0}, {"optimizer": {"clip": 1.0}, "seed": 0})
    ['optimizer.clip: not set -> 1.0']
    """
    return _changes(old, new, ())


def _changes(old: Any, new: Any, at: Location) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _changes(old.get(key), new.get(key), (*at, key))]
    if old == new and isinstance(old, bool) == isinstance(new, bool):
        return []
    return [f"{dotted(at)}: {_text(old)} -> {_text(new)}"]


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("...\n").strip()
