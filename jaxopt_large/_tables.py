"""Tables of text and sizes, as reports, explanations and messages print them."""

from collections.abc import Sequence


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
