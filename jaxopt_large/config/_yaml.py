"""YAML to plain Python, remembering the line of every value."""

from pathlib import Path
from typing import Any

import yaml

from ._compose import ConfigError as ConfigError
from ._compose import Loader, Place, compose, read_text

Location = tuple[Any, ...]  # keys and indices from the root to a value

_TAG = "tag:yaml.org,2002:"
_SCALARS = {"str", "int", "float", "bool", "null"}  # what a setting's value may be
_BITS = 1024  # of an integer; a longer one does not fit a float either
_SHOWN = 60  # characters of a value in a message


class Source:
    """A configuration as read: its values, and where each of them was written."""

    def __init__(self, place: Place):
        self.place_of_line = place
        self.values: Any = {}
        self.places: dict[Location, str] = {}

    def place(self, location: Location) -> str:
        """ "file:line" of a value, or of the nearest one around it."""
        while location not in self.places and location:
            location = location[:-1]
        return self.places.get(location) or self.place_of_line(0)


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Source:
    """Reads a file, then sets each `a.b=c` of `overrides`.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: it cannot be read, is no YAML or no mapping, has a key twice or one that is no string;
        an override is none.
    """
    source = Source(lambda line: f"{path}:{line + 1}")
    node = compose(read_text(path), source.place_of_line)
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{path}:1: not a mapping of keys to values")
    problems: list[str] = []
    source.values = _construct(node, (), source, problems)
    for override in overrides:
        problems += _override(source, override)
    if problems:
        raise ConfigError("\n".join(problems))
    return source


def dump(values: Any) -> str:
    """Plain Python as YAML, keys in the order given."""
    return yaml.safe_dump(values, sort_keys=False, width=100, allow_unicode=True)


def shown(value: Any) -> str:
    """A value in a message: as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def dotted(location: Location) -> str:
    """A location as a user writes it; the file where it is empty."""
    return ".".join(str(part)[:_SHOWN] for part in location) or "the file"


def _construct(node: Any, at: Location, source: Source, problems: list[str]) -> Any:
    place = source.place_of_line(node.start_mark.line)
    source.places.setdefault(at, place)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, at, place, problems)
    kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
    if node.tag != _TAG + kind:
        problems.append(f"{place}: {dotted(at)}: tags are not read (got {shown(_plain_tag(node))})")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*at, i), source, problems) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        where = source.place_of_line(key_node.start_mark.line)
        wrong = _key_problem(key_node, result)
        if wrong:
            problems.append(f"{where}: {dotted((*at, *_name(key_node)))}: {wrong}")
            continue
        key = key_node.value
        source.places[(*at, key)] = where
        result[key] = _construct(value_node, (*at, key), source, problems)
    return result


def _key_problem(node: Any, before: dict[str, Any]) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a key must be a string"
    if node.tag == _TAG + "merge":
        return "merge keys are not read; write the settings out, or give the whole group an alias"
    if node.tag != _TAG + "str":
        return f"a key must be a string (got {shown(node.value)}); put it in quotes"
    return "the key is there twice" if node.value in before else ""


def _name(key: Any) -> tuple[str, ...]:
    return (str(key.value)[:_SHOWN],) if isinstance(key, yaml.ScalarNode) else ()


def _scalar(node: yaml.ScalarNode, at: Location, place: str, problems: list[str]) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if kind not in _SCALARS:
        problems.append(f"{place}: {dotted(at)}: tags are not read (got {shown(_plain_tag(node))})")
        return None
    loader = Loader("")
    try:
        value = loader.construct_object(node)
    except (ValueError, KeyError):  # !!int abc, !!bool abc; an integer of more digits than Python reads
        problems.append(f"{place}: {dotted(at)}: cannot be read as !!{kind} (got {shown(node.value)})")
        return None
    finally:
        loader.dispose()
    if isinstance(value, int) and value.bit_length() > _BITS:
        problems.append(f"{place}: {dotted(at)}: too large a number (got {shown(node.value)})")
        return None
    return value


def _plain_tag(node: yaml.Node) -> str:
    return node.tag.replace(_TAG, "!!")


def _override(source: Source, text: str) -> list[str]:
    """Sets one `a.b=c` in place; c is YAML. Returns what is wrong with it."""
    path, equals, value = text.partition("=")
    name = f"--set {text if len(text) <= 2 * _SHOWN else text[: 2 * _SHOWN] + '...'}"
    keys = path.strip().split(".")
    if not equals or not all(keys):
        return [f"{name}: not of the form a.b=value"]
    inner = Source(lambda line: name)
    problems: list[str] = []
    try:
        node = compose(value, inner.place_of_line)
    except ConfigError as error:
        return [str(error)]
    parsed = None if node is None else _construct(node, tuple(keys), inner, problems)
    target = source.values
    for i, key in enumerate(keys[:-1]):
        target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return [f"{name}: {'.'.join(keys[: i + 1])} is not a group of settings"]
    target[keys[-1]] = parsed
    at = tuple(keys)
    source.places = {k: v for k, v in source.places.items() if k[: len(at)] != at}
    for n in range(1, len(at) + 1):
        source.places.setdefault(at[:n], name)
    return problems
