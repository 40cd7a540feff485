"""What rules there are: each says so itself, and all else is read off its signature, docstring and state."""

import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from .._hyperparameters import checked
from .._tables import Table
from .._types import Rule

_F = TypeVar("_F", bound=Callable[..., Rule])
_LEAF = (1024, 1024)  # the parameter that a rule's state is measured for

RULES: dict[str, Callable[..., Rule]] = {}  # name -> rule, in the order of their definition


def rule(function: _F) -> _F:
    """A full rule: its arguments are checked, and it is one of `RULES`."""
    made = checked(function)
    RULES[function.__name__] = made
    return made


class RuleRow(NamedTuple):
    """What is to be known of a rule.

    Attributes:
      name: of the function.
      summary: the first sentence of its description.
      fields: of its state, with default arguments; those that are trees like the parameters first.
      bytes: of state per float32 parameter, with default arguments.
      source: where it is from.
      differs: from the source, or from others that have the rule, and why; "" where it does not.
    """

    name: str
    summary: str
    fields: tuple[str, ...]
    bytes: float
    source: str
    differs: str = ""


class Rules(Table):
    """One `RuleRow` per rule; printed, a table."""

    columns = ("name", "fields", "bytes", "source")

    def cell(self, row: RuleRow, column: str) -> str:
        """What is printed of a row in a column."""
        if column == "fields":
            return ", ".join(row.fields) or "-"
        return f"{row.bytes:g}" if column == "bytes" else super().cell(row, column)


def rules() -> Rules:
    """The rules of this library, with what each keeps and where it is from.

    >>> [(row.name, row.fields, row.bytes) for row in jl.rules() if row.name == "adam"]
    [('adam', ('mu', 'nu', 'count'), 8.0)]
    """
    return Rules(_row(name, RULES[name]) for name in RULES)


def _row(name: str, make: Callable[..., Rule]) -> RuleRow:
    leaf = jax.ShapeDtypeStruct(_LEAF, jnp.float32)
    state = jax.tree_util.tree_flatten_with_path(jax.eval_shape(make(1.0).init, leaf))[0]
    large = sorted(state, key=lambda pair: pair[1].size == 1)
    fields = tuple(dict.fromkeys(next(k.name for k in path[::-1] if hasattr(k, "name")) for path, _ in large))
    per_parameter = sum(x.size * x.dtype.itemsize for _, x in state if x.size > 1) / leaf.size
    text = " ".join((make.__doc__ or "").split())
    source = re.search(r"Source: (.*?)\.(?= >>>|$)", text)
    differs = re.search(r"Differs: (.*?)\. Source:", text)
    said = [found.group(1) if found else "" for found in (source, differs)]
    return RuleRow(name, text.split(". ")[0].rstrip("."), fields, per_parameter, *said)
