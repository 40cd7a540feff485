"""YAML to plain Python, remembering the line of every value."""

import re
from pathlib import Path
from typing import Any

import yaml

Location = tuple[Any, ...]  # keys and indices from the root to a value


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `3e-4` is a float, as everywhere outside YAML 1.1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


class ConfigError(ValueError):
    """A configuration cannot be used; the message has one line per problem."""


class Source:
    """A configuration as read: its values, and where each of them was written."""

    def __init__(self, name: str):
        self.name = name
        self.values: Any = {}
        self.places: dict[Location, str] = {}

    def place(self, location: Location) -> str:
        """ "file:line" of a value, or of the nearest one around it."""
        while location not in self.places and location:
            location = location[:-1]
        return self.places.get(location, f"{self.name}:1")


def read(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Source:
    """Reads a file, then sets each `a.b=c` of `overrides`.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: it is not YAML, not a mapping, has a key twice, or an override cannot be read.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"config: there is no file {str(path)!r}")
    source = Source(str(path))
    try:
        node = yaml.compose(file.read_text(), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{path}:{line}: not YAML: {error.problem}") from None
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


def _construct(node: Any, at: Location, source: Source, problems: list[str]) -> Any:
    line = node.start_mark.line + 1
    source.places.setdefault(at, f"{source.name}:{line}")
    if isinstance(node, yaml.MappingNode):
        result = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key in result:
                where = f"{source.name}:{key_node.start_mark.line + 1}"
                problems.append(f"{where}: {_dotted((*at, key))}: the key is there twice")
            source.places[(*at, key)] = f"{source.name}:{key_node.start_mark.line + 1}"
            result[key] = _construct(value_node, (*at, key), source, problems)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*at, i), source, problems) for i, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.ScalarNode) -> Any:
    loader = _Loader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def _override(source: Source, text: str) -> list[str]:
    """Sets one `a.b=c` in place; c is YAML. Returns what is wrong with it."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        return [f"--set {text}: not of the form a.b=value"]
    keys = path.strip().split(".")
    try:
        node = yaml.compose(value, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        return [f"--set {text}: not YAML: {error.problem}"]
    inner = Source(f"--set {text}")
    problems: list[str] = []
    parsed = None if node is None else _construct(node, (), inner, problems)
    target = source.values
    for i, key in enumerate(keys[:-1]):
        target = target.setdefault(key, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            return [f"--set {text}: {'.'.join(keys[: i + 1])} is not a group of settings"]
    target[keys[-1]] = parsed
    at = tuple(keys)
    source.places = {k: v for k, v in source.places.items() if k[: len(at)] != at}
    for n in range(1, len(at) + 1):
        source.places.setdefault(at[:n], f"--set {text}")
    return problems


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
