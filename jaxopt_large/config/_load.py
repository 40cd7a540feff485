"""From a file to a checked configuration: all problems at once, each with its line."""

import difflib
import os
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from ._build import build
from ._yaml import ConfigError, Location, Source, dotted, dump, read, shown
from .schema import Config, Frozen

_LISTED = 50  # problems in one message
_ALIKE = 0.5  # how close an unknown key must come to a known one to be taken for it


def load(path: str | os.PathLike[str], overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a run's configuration.

    Args:
      path: a YAML file.
      overrides: settings like "train.steps=100" that win over the file; the value is YAML.

    Returns:
      The configuration, complete with defaults and checked as far as possible without the data.

    Raises:
      FileNotFoundError: there is no such file.
      ConfigError: one line per problem: `file:line: path: reason (got ...); did you mean ...`.
    """
    source = read(os.fspath(path), overrides)
    try:
        config = Config.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError(_listed([_describe(source, e) for e in error.errors(include_url=False)])) from None
    problems = _rule_problems(source, config)
    if problems:
        raise ConfigError(_listed(problems))
    return config


def to_yaml(config: Config) -> str:
    """The configuration with every default written out; `load` reads it back."""
    return dump(settings(config))


def settings(config: Config) -> dict[str, Any]:
    """The configuration with every default, as plain Python."""
    return config.model_dump(mode="json")


def changed(config: Config, values: dict[str, Any]) -> Config:
    """A configuration with other settings.

    Args:
      config: checked.
      values: dotted path -> value, as a file has it.

    Raises:
      ValueError: together they are no configuration.
    """
    found = settings(config)
    for path, value in values.items():
        *parents, last = path.split(".")
        at = found
        for name in parents:
            at[name] = at[name] or {}
            at = at[name]
        at[last] = value
    return Config.model_validate(found)


def _listed(problems: list[str]) -> str:
    """One line per problem, as many as a screen can take."""
    more = len(problems) - _LISTED
    return "\n".join(problems[:_LISTED] + ([f"and {more} more"] if more > 0 else []))


def _rule_problems(source: Source, config: Config) -> list[str]:
    """What rules and wrappers themselves say of their settings, each at its line."""
    problems, groups, wrappers = [], config.optimizer.groups, config.optimizer.wrappers
    each: list[tuple[Location, Any]] = [(("optimizer", "groups", glob), x) for glob, x in groups.items()]
    each += [(("optimizer", "wrappers", n), x) for n, x in enumerate(wrappers)]
    for place, settings in each:
        alone = config.model_copy(deep=True)
        is_wrapper = place[1] == "wrappers"
        alone.optimizer.groups = {"*": Frozen(rule="freeze")} if is_wrapper else {place[2]: settings}
        alone.optimizer.wrappers = [settings] if is_wrapper else []
        alone.placement.zero = None
        try:
            build(alone)
        except (TypeError, ValueError) as error:
            for line in str(error).splitlines():
                words = line.partition(": ")[2] or line
                location = place
                name = words.split(" ", 1)[0]
                if name in type(settings).model_fields:
                    location = (*location, name)
                problems.append(f"{source.place(location)}: {dotted(location)}: {words}")
    return problems


def _describe(source: Source, error: Any) -> str:
    location, known = _in_file(source, error["loc"])
    kind, got, hint = error["type"], error.get("input"), ""
    reason = error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        reason, got = "unknown key", location[-1]
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=_ALIKE)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known keys are {', '.join(known)}"
    elif kind in ("model_type", "model_attributes_type", "dict_type"):
        reason = "must be a group of settings"
    elif kind == "less_than_equal":  # 3.4e+38, and not its 39 digits
        reason = f"{reason.rpartition(' ')[0]} {error['ctx']['le']}"
    elif kind == "missing":
        return f"{source.place(location)}: {dotted(location)}: missing"
    elif kind == "union_tag_invalid":
        tags = [t.strip(" '") for t in error["ctx"]["expected_tags"].split(",")]
        tag_key = error["ctx"]["discriminator"].strip("'")
        location, got = (*location, tag_key), error["ctx"]["tag"]
        close = difflib.get_close_matches(str(got), tags, n=1)
        reason = f"must be one of {', '.join(tags)}"
        hint = f"; did you mean {close[0]!r}?" if close else ""
    elif kind == "union_tag_not_found":
        tag_key = error["ctx"]["discriminator"].strip("'")
        return f"{source.place(location)}: {dotted((*location, tag_key))}: missing"
    elif kind == "value_error":  # our own checks of several values name them
        inner = reason.split(":", 1)[0]
        if location == () and inner.replace(".", "").isidentifier():
            location = tuple(inner.split("."))
            reason = reason.split(": ", 1)[1]
        return f"{source.place(location)}: {dotted(location)}: {reason}"
    return f"{source.place(location)}: {dotted(location)}: {_plain(reason)} (got {shown(got)}){hint}"


def _in_file(source: Source, location: Location) -> tuple[Location, list[str]]:
    """pydantic's location without the tags of its unions, and the keys allowed beside the last one."""
    values, model, cleaned = source.values, Config, []
    known: list[str] = list(Config.model_fields)
    for part in location:
        inside = isinstance(values, dict) and part in values
        inside = inside or (isinstance(values, list) and isinstance(part, int) and part < len(values))
        fields = model.model_fields if isinstance(model, type) and issubclass(model, BaseModel) else {}
        if inside or part in fields:
            known = list(fields) or known
            cleaned.append(part)
            values = values[part] if inside else None
            model = _member(fields[part].annotation) if part in fields else model
        else:
            model = _tagged(model, part) or model
        if isinstance(model, type) and issubclass(model, BaseModel) and part != location[-1]:
            known = list(model.model_fields)
    return tuple(cleaned), known


def _member(annotation: Any) -> Any:
    """The type inside dict[...], list[...] or Annotated[...]; others as they are."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) in (dict, list):
        return _member(arguments[-1])
    if typing.get_origin(annotation) is typing.Annotated:
        return _member(arguments[0])
    return annotation


def _tagged(union: Any, tag: Any) -> Any:
    """The member of a union of groups whose kind, rule or schedule is `tag`; of wrappers likewise."""
    for member in typing.get_args(union):
        inner = _member(member)
        if typing.get_args(inner):
            found = _tagged(inner, tag)
            if found is not None:
                return found
        elif isinstance(inner, type) and issubclass(inner, BaseModel):
            for name in ("kind", "rule", "schedule", "wrapper", "guard"):
                field = inner.model_fields.get(name)
                if field is not None and typing.get_args(field.annotation) == (tag,):
                    return inner
    return None


def _plain(reason: str) -> str:
    return (
        reason.replace("Input should be", "must be")
        .replace("a valid integer", "an integer")
        .replace("valid ", "")
    )
