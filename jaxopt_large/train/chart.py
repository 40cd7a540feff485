"""Charts: bars of block characters in a terminal, pictures where matplotlib is installed."""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

_BLOCKS = " ▁▂▃▄▅▆▇█"
_LEAST = 1e-9  # a loss of 0 has no logarithm
_HEIGHT = 8  # lines of bars
_MARGIN = 14  # columns of a terminal that bars leave to labels
_WIDEST = 72  # columns of bars


def print_bars(
    console: Console, title: str, values: Sequence[float], steps: int, *, log: bool = False
) -> None:
    """Bars below a title, as wide as the terminal lets them; nothing where it has no block characters.

    Args:
      console: the terminal.
      title: above the bars.
      values: one a step, or fewer at equal distances.
      steps: the last one, in the label.
      log: is the scale logarithmic, from the least value, or linear, from 0?
    """
    width = min(console.width - _MARGIN, _WIDEST)
    if width < 1 or not (console.encoding or "").lower().startswith("utf"):
        return
    console.print(Text(title, style="bold"), no_wrap=True, overflow="ellipsis")
    for line in bars(values, width, steps, log=log):
        console.print(Text(line), no_wrap=True, overflow="crop", highlight=False)


def bars(values: Sequence[float], width: int, steps: int, *, log: bool = False) -> list[str]:
    """A bar chart of `values`, averaged into `width` columns, its ends at the left; see `print_bars`."""
    width = min(width, len(values))
    edges = [round(i * len(values) / width) for i in range(width)]
    counts = np.diff([*edges, len(values)])
    columns = (np.add.reduceat(np.asarray(values, np.float64), edges) / counts).tolist()
    low, high = (min(columns), max(columns)) if log else (0.0, max(values))
    label = "{:.3f}" if log else "{:.3g}"
    lines = []
    eighths = _log_eighths(columns) if log else _linear_eighths(columns, high)
    for row in range(_HEIGHT - 1, -1, -1):
        value = {_HEIGHT - 1: label.format(high), 0: label.format(low)}.get(row, "")
        blocks = "".join(_BLOCKS[max(0, min(8, e - 8 * row))] for e in eighths)
        lines.append(f"{value:>9} ┤{blocks}")
    return [*lines, f"{'':>9} └{'─' * width}", f"{'step':>9}  1{str(steps).rjust(width - 1)}"]


def _log_eighths(columns: list[float]) -> list[int]:
    floor = max(min(columns), _LEAST)
    heights = [math.log(max(c, floor) / floor) for c in columns]
    span = max(heights) or 1.0
    return [1 + round(h / span * (_HEIGHT * 8 - 1)) for h in heights]


def _linear_eighths(columns: list[float], high: float) -> list[int]:
    return [round(c / (high or 1.0) * _HEIGHT * 8) for c in columns]


def figure(console: Console, width: float, height: float) -> Any:
    """A figure of matplotlib's, None where it is not installed, which is said."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        console.print("No picture of the curves: matplotlib comes with jaxopt_large[viz].", markup=False)
        return None
    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    return made


def as_png(made: Any) -> bytes:
    """The picture, with the house's grid and without frames."""
    for axes in made.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    picture = io.BytesIO()
    made.savefig(picture, format="png")
    return picture.getvalue()
