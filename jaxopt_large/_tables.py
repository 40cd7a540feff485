"""Tables of text, as reports and explanations print them."""

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
