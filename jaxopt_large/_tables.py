"""Tables of text and sizes, as reports, explanations and messages print them."""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple


class Table(tuple[Any, ...]):
    """Rows, each a NamedTuple, that can be read by eye, by Python and by other programs.

    Printed, a table of text, a column for each of `columns`; `to_json()` has every field of every row.

    Attributes:
      columns: names of the rows' fields, or of what `cell` makes of a row.
      ruled: is there a line of dashes below the head?
      skips_empty: are columns without an entry left out?
      most_printed: rows; of more the first half of that many is printed.
    """

    columns: ClassVar[Sequence[str]] = ()
    ruled: ClassVar[bool] = True
    skips_empty: ClassVar[bool] = False
    most_printed: ClassVar[int | None] = None

    def cell(self, row: Any, column: str) -> str:
        """What is printed of a row in a column."""
        return text_of(getattr(row, column))

    def __str__(self) -> str:
        most = len(self) if self.most_printed is None else self.most_printed
        shown = self if len(self) <= most else self[: most // 2]
        columns = [c for c in self.columns if not self.skips_empty or any(self.cell(row, c) for row in self)]
        entries = [[self.cell(row, column) for column in columns] for row in shown]
        lines = [table(columns, entries, ruled=self.ruled)]
        if len(shown) < len(self):
            lines.append(f"... and {len(self) - len(shown):,} more")
        return "\n".join(lines)

    def to_json(self) -> str:
        """The rows as JSON: a list of objects with the fields' names; numbers that are none are null."""
        return json.dumps([fields_of(row) for row in self], indent=1)


def fields_of(row: Any) -> dict[str, Any]:
    """A row's fields as JSON has them."""
    return {name: _plain(value) for name, value in zip(row._fields, row, strict=True)}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return list(value) if isinstance(value, tuple) else value


def text_of(value: Any) -> str:
    """An entry of a table.

    >>> text_of(65536), text_of((128, 512))
    ('65,536', '(128, 512)')
    """
    return f"{value:,}" if isinstance(value, int) else str(value)


class Columns(NamedTuple):
    """A table to be printed.

    Attributes:
      head: of each column.
      rows: entries, one for each column.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, ruled: bool = True) -> str:
    """Columns as wide as their widest entry.

    Args:
      head: of each column.
      rows: entries, one for each column.
      ruled: is there a line of dashes below the head?

    >>> print(table(("path", "bytes"), [("w", "1,024")]))
    path  bytes
    ----  -----
    w     1,024
    """
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    rule = [tuple("-" * width for width in widths)] if ruled else []
    return "\n".join(
        "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rule, *rows)
    )


def size(number: int) -> str:
    """Bytes, in the unit that suits.

    >>> size(5 * 2**20), size(100)
    ('5.00 MiB', '100 B')
    """
    for limit, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= limit:
            return f"{number / limit:.2f} {unit}"
    return f"{number} B"


_UNITS = {
    "b": 1,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
}


def bytes_in(text: str) -> int | None:
    """ "16GiB" in bytes; None if it is something else.

    >>> bytes_in("16GiB"), bytes_in("1.5 MB"), bytes_in("much")
    (17179869184, 1500000, None)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-zA-Z]+)\s*", text)
    unit = _UNITS.get(found.group(2).lower()) if found else None
    return None if found is None or unit is None else int(float(found.group(1)) * unit)
