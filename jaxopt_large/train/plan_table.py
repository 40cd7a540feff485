"""A plan in the terminal: its tables in color, with a bar for what each part takes of a device."""

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .._tables import Columns
from ..plan import Plan

_WIDTH = 24  # characters of the longest bar
_WIDE = 100  # columns of a terminal that has room for bars
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def show(plan: Plan, console: Console) -> None:
    """Prints a plan: as text where no terminal reads it."""
    if console.is_terminal:
        console.print(rendered(plan, bars=console.width >= _WIDE))
    else:
        console.file.write(f"{plan}\n")
        console.file.flush()


def rendered(plan: Plan, *, bars: bool = True) -> Group:
    """What rich prints of a plan, with or without bars beside its first table."""
    whole = plan.chip.memory if plan.chip is not None else plan.device_bytes
    shares = [row.device_bytes / max(whole, 1) for row in plan] + [plan.device_bytes / max(whole, 1)]
    color = "green" if plan.fits else "red"
    found: list[Table | Text] = []
    for part in plan.parts():
        if isinstance(part, Columns):
            beside = [_bar(share) for share in shares] if bars and not found else None
            found += [_table(part, beside, color), Text()]
        else:
            verdict, *rest = part.splitlines()
            found += [Text(verdict, style=f"bold {color}"), *map(Text, rest), Text()]
    return Group(*found[:-1])


def _table(part: Columns, bars: list[str] | None = None, color: str = "") -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold underline")
    for n, name in enumerate(part.head):
        entries = [row[n] for row in part.rows]
        is_number = all(not e or (e[0] in "+-0123456789" and len(e.split()) <= 2) for e in entries)
        made.add_column(name, justify="right" if is_number and n else "left", no_wrap=n < len(part.head) - 1)
    if bars is not None:
        made.add_column("of a device", style=color, no_wrap=True)
    for n, row in enumerate(part.rows):
        more = [] if bars is None else [bars[n]]
        made.add_row(*(Text(entry) for entry in row), *more, style="bold" if row[0] == "all" else None)
    return made


def _bar(share: float) -> str:
    """A bar as long as the share of a device, and the share in percent."""
    eighths = round(min(share, 1.0) * _WIDTH * 8)
    bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
    return f"{bar} {100 * share:.0f} %".lstrip() if share >= 0.005 else ""
