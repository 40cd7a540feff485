"""From bytes to YAML nodes, within limits: nothing hangs or runs out of stack, each problem has its line."""

import codecs
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_BYTES = 2**20  # of a file; the longest configuration here has 2 KiB
_VALUES = 10_000  # of a document, what an alias stands for counted each time; configurations have 100
_DEPTH = 32  # of groups in groups; configurations have 6
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

Place = Callable[[int], str]  # line, counted from 0 -> what stands before a problem


class ConfigError(ValueError):
    """A configuration cannot be used; the message has one line per problem."""


class Loader(yaml.SafeLoader):
    """Safe YAML in which `3e-4` is a float, as everywhere outside YAML 1.1, and a date is a string.

    What aliases stand for is counted while nodes are made, before anything grows.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._depth, self._values = 0, 0
        self._sizes: dict[str, int | None] = {}  # anchor -> values it stands for; None inside of it

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        is_alias, anchor = isinstance(event, yaml.AliasEvent), event.anchor
        mark, before = event.start_mark, self._values
        if is_alias:
            size = self._sizes.get(anchor, 0)
            if size is None:
                raise _Refused(f"*{anchor} stands inside of what it refers to", mark)
            self._count(size, mark)
            return super().compose_node(parent, index)
        if self._depth == _DEPTH:
            raise _Refused(f"groups in groups, more than {_DEPTH} deep", mark)
        self._count(1, mark)
        self._depth += 1
        if anchor is not None:
            self._sizes[anchor] = None
        node = super().compose_node(parent, index)
        if anchor is not None:
            self._sizes[anchor] = self._values - before
        self._depth -= 1
        return node

    def _count(self, more: int, mark: Any) -> None:
        self._values += more
        if self._values > _VALUES:
            raise _Refused(f"more than {_VALUES:,} values, what aliases stand for included", mark)


class _Refused(yaml.MarkedYAMLError):
    """YAML, but not of a configuration."""

    def __init__(self, reason: str, mark: Any):
        super().__init__(problem=reason, problem_mark=mark)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: it is a folder, cannot be read, is too large or not UTF-8.
    """
    name = os.fspath(path)
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            with Path(name).open("rb") as file:
                return _decoded(file.read(_BYTES + 1), name)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise FileNotFoundError(f"config: there is no file {name!r}") from None
    except OSError as error:
        raise ConfigError(f"config: {name!r} cannot be read: {error.strerror}") from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
    raise ConfigError(f"config: {name!r} is {kind}; give a YAML file, such as configs/stdlib_gpt.yaml")


def _decoded(content: bytes, name: str) -> str:
    if len(content) > _BYTES:
        raise ConfigError(f"{name}:1: no configuration: the file has more than {_BYTES:,} bytes")
    for mark, encoding in _ENCODINGS.items():
        if content.startswith(mark):
            raise ConfigError(f"{name}:1: not UTF-8: the file is {encoding}; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"(got byte 0x{content[error.start]:02x})"
        raise ConfigError(f"{name}:{line}: not UTF-8 {got}; save it as UTF-8") from None


def compose(text: str, place: Place) -> yaml.Node | None:
    """The root node of a text, None for an empty one.

    Raises:
      ConfigError: it is not YAML, or has what no configuration has.
    """
    strange = Loader.NON_PRINTABLE.search(text)
    if strange:
        where = place(text.count("\n", 0, strange.start()))
        raise ConfigError(f"{where}: not YAML: the character U+{ord(strange.group()):04X} cannot stand in it")
    loader = Loader(text)
    try:
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        reason = f"not YAML: {error.problem}"
        if isinstance(error, _Refused):
            reason = str(error.problem)
        elif "another document" in reason:
            reason = "not YAML: a second document begins"
        raise ConfigError(f"{place(line)}: {reason}") from None
    finally:
        loader.dispose()
