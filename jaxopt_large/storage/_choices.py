"""Which format each leaf of a state is kept in, and why: decided once, by `init`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._axes import window_of
from .._errors import Problems
from .._owners import Owners, field_and_owner
from .._paths import check_glob, first_match, leaf_paths, listed, matches
from .._types import Params, Rule, State
from .._window import Window
from ._format import Format
from ._signs import never_negative
from .float32 import Float32

NOT_GIVEN = "no format is given for it"
FEWEST = 4096  # elements of the whole array: below it the scales and the step cost more than is saved
_NARROWEST = 16  # elements along the last axis: a scale for fewer takes a quarter byte of each and more
_DELICATE = "*embed*|*wte*|*wpe*|*norm*|*ln_*|*router*"  # their second moments vary most within a block


class Choice(NamedTuple):
    """How one leaf of the state is kept.

    Attributes:
      field: of the state, like "nu".
      path: of the parameter that it belongs to.
      owner: the number of that parameter; None: it belongs to none.
      shape: of the whole leaf.
      format: None for a leaf that is left as the rule has it; `Float32` for one that is widened to that.
      window: which part of it is here, inside a mapped axis.
      reason: why.
    """

    field: str
    path: str
    owner: int | None
    shape: tuple[int, ...]
    format: Format | None
    window: Window | None
    reason: str


Formats = Mapping[str, Format | Mapping[str, Format]]


def choose(who: str, rule: Rule, params: Params, state: State, formats: Formats) -> list[Choice]:
    """A choice for each leaf of the state, in the order of `jax.tree.leaves`.

    Raises:
      ValueError: a field that no leaf has, a glob that matches nothing, or a leaf that no glob matches.
    """
    keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = leaf_paths(params)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    owners = Owners(keys)
    places = [field_and_owner(path, keys, owners) for path, _ in leaves]
    shapes = [jax.tree.map(_kind, t) for t in (params, state)]
    kinds = jax.tree.leaves(shapes[1])
    unsigned = never_negative(rule, *shapes)
    problems, found = Problems(who), []
    _check(problems, formats, places, names)
    for (field, owner), leaf, positive in zip(places, kinds, unsigned, strict=True):
        path = "" if owner is None else names[owner]
        window = None if owner is None else window_of(keys[owner])
        if window is not None and leaf.ndim != len(window.whole):
            window = None
        shape = tuple(leaf.shape) if window is None else window.whole
        given = formats.get(field)
        if given is None or not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.ndim == 0:
            left = f"{leaf.dtype} is left as it is: formats are for arrays of real numbers"
            reason = NOT_GIVEN if given is None else left
            found.append(Choice(field, path, owner, shape, None, window, reason))
            continue
        format, reason = _pick(problems, field, path, given, positive)
        found.append(Choice(field, path, owner, shape, *_if_worth(format, shape, window, reason)))
    problems.raise_if_any()
    return found


def _kind(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))  # a state may hold Python numbers


def _pick(
    problems: Problems, field: str, path: str, given: Format | Mapping[str, Format], positive: bool | None
) -> tuple[Format, str]:
    if isinstance(given, Mapping):
        glob = first_match(list(given), path)
        if glob is None:
            problems.add(f"{field} has no format", at=path, do='End its globs with "*" for the rest')
            return Float32(), ""
        format, reason = given[glob], f"given for {glob!r}"
    elif positive and matches(_DELICATE, path.lower()):
        return Float32(), "a second moment of an embedding, a norm or a router"
    else:
        format, reason = given, "given"
    if format.signed is None:
        format = format.of_sign(not positive)
        if positive is None:
            reason += "; signs unknown, as update takes more arguments: both assumed, signed=False if not"
    return format, f"{reason}; never negative" if positive else reason


def _if_worth(
    format: Format, shape: tuple[int, ...], window: Window | None, reason: str
) -> tuple[Format | None, Window | None, str]:
    size = math.prod(shape)
    if isinstance(format, Float32):
        return Float32(), window, reason
    if size < FEWEST:
        return Float32(), window, f"{size} elements, under {FEWEST}"
    if format.blocks and shape[-1] < _NARROWEST:
        return Float32(), window, f"{shape[-1]} elements along the last axis, under {_NARROWEST}"
    return format, window, reason


def _check(
    problems: Problems, formats: Formats, places: list[tuple[str, int | None]], names: list[str]
) -> None:
    """Adds fields that the state does not have, and globs that match none of a field's leaves."""
    fields = list(dict.fromkeys(field for field, owner in places if field and owner is not None))
    for field, given in formats.items():
        if field not in fields:
            problems.add(f"the state has no field {field!r}", allowed=f"its fields are {listed(fields)}")
        elif isinstance(given, Mapping):
            paths = [names[owner] for name, owner in places if name == field and owner is not None]
            for glob in given:
                check_glob(problems, f"a glob of {field}", glob, paths, "parameter with that field")
