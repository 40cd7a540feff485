"""The learning rates of a run before it runs: a table, curves in the terminal, a picture."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._numerics import as_scalar
from .._writing import not_written
from ..config import Config, learning_rates
from ._errors import RunWriteError
from .chart import as_png, figure, print_bars

_MOST = 2**22  # steps that are looked at; of longer runs as many, at equal distances


class Rates(NamedTuple):
    """Learning rates over a run.

    Attributes:
      counts: steps taken before the one that has the rate, int32.
      values: the rate of each rule, by glob and rule.
    """

    counts: np.ndarray
    values: dict[str, np.ndarray]


def rates(config: Config) -> Rates:
    """Every learning rate at every step of a run, by one compiled call."""
    steps = config.train.steps
    counts = np.linspace(0, steps - 1, min(steps, _MOST)).round().astype(np.int32)
    found = learning_rates(config)

    def at(count: Any) -> dict[str, Any]:
        return {name: as_scalar(rate(count) if callable(rate) else rate) for name, rate in found.items()}

    values = jax.jit(jax.vmap(at))(jnp.asarray(counts))
    return Rates(counts, {name: np.asarray(values[name]) for name in found})


def show_rates(config: Config, *, png: str | Path | None = None, console: Console | None = None) -> bool:
    """Shows the learning rates of a run.

    Args:
      config: from `load`.
      png: the file of a picture; None for none.
      console: where to show; by default standard output.

    Returns:
      Whether all was shown: False where a picture was asked for and matplotlib is not installed.

    Raises:
      RunWriteError: the picture cannot be written.
    """
    console = console or Console()
    found = rates(config)
    for name, values in found.values.items():
        print_bars(console, f"learning rate of {name}", values.tolist(), config.train.steps)
    console.print(_table(found) if found.values else "No rule here has a learning rate.")
    if png is None:
        return True
    picture = figure(console, 8, 3.5)
    if picture is None:
        return False
    content = _drawn(picture, config, found)
    try:
        Path(png).write_bytes(content)
    except OSError as error:
        raise RunWriteError(not_written("schedule", Path(png), error)) from None
    return True


def _table(found: Rates) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("rule", overflow="fold")
    for name in ("first", "peak", "at step", "last"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, values in found.values.items():
        top = int(values.argmax())
        numbers = [
            f"{values[0]:.3g}",
            f"{values[top]:.3g}",
            f"{found.counts[top] + 1:,}",
            f"{values[-1]:.3g}",
        ]
        table.add_row(Text(name), *numbers)
    return table


def _drawn(picture: Any, config: Config, found: Rates) -> bytes:
    axes = picture.subplots()
    for name, values in found.values.items():
        axes.plot(found.counts + 1, values, linewidth=1.5, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("learning rate")
    axes.set_title(f"{config.name}: learning rate over {config.train.steps:,} steps", loc="left")
    if found.values:
        axes.legend(frameon=False)
    return as_png(picture)
