"""A plan as bars: what each part takes of a device, as a picture or as a page."""

import html
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._errors import message
from .._tables import size

if TYPE_CHECKING:
    from .sheet import Plan

_COLORS = {
    "parameters": "#3b6fb6",
    "state": "#d1763c",
    "gradients": "#4f9d69",
    "accumulators": "#9cc5a1",
    "activations": "#b0559b",
    "temporaries": "#8a8a8a",
}
_GIB = 2**30


def parts(plan: "Plan") -> dict[str, int]:
    """Bytes of each part on one device, those that are there."""
    return {name: plan.part(name) for name in _COLORS if plan.part(name)}


def save_png(plan: "Plan | Mapping[str, Plan]", path: str | os.PathLike[str], *, title: str = "") -> None:
    """A bar for each plan, its parts one after another, and the memory of the chip. Needs matplotlib.

    Args:
      plan: one, or several by name.
      path: the file.
      title: above the bars; the name of the only one.
    """
    figure = drawn(plan, title=title)
    figure.savefig(path, dpi=150)


def drawn(plan: "Plan | Mapping[str, Plan]", *, title: str = "") -> Any:
    """The figure of `save_png`."""
    from matplotlib.figure import Figure

    plans = _named(plan, title)
    figure = Figure(figsize=(9, 1.6 + 0.55 * len(plans)), layout="constrained")
    axes, above = figure.add_subplot(), None
    for row, (_name, one) in enumerate(plans.items()):
        left = 0.0
        for part, taken in parts(one).items():
            axes.barh(row, taken / _GIB, left=left, color=_COLORS[part], label=part if row == 0 else None)
            left += taken / _GIB
        if one.chip is not None:
            at = one.chip.memory / _GIB
            axes.plot([at, at], [row - 0.44, row + 0.44], color="black", linewidth=2)
            if one.chip != above:
                axes.text(at, row - 0.46, one.chip.name, ha="center", va="bottom", fontsize=7)
        above = one.chip
        how = {"xytext": (5, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axes.annotate(size(one.device_bytes), (left, row), bbox=white, zorder=4, **how)
    axes.set_yticks(range(len(plans)), list(plans))
    axes.set_ylim(len(plans) - 0.4, -0.75)
    axes.margins(x=0.12)
    axes.set_xlabel("GiB on one device")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles = [_patch(part) for part in _COLORS if any(one.part(part) for one in plans.values())]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    return figure


def _patch(part: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=_COLORS[part], label=part)


def save_html(plan: "Plan | Mapping[str, Plan]", path: str | os.PathLike[str], *, title: str = "") -> None:
    """The bars as a page that needs nothing else, each plan's tables below its bar."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(page(plan, title=title))


def page(plan: "Plan | Mapping[str, Plan]", *, title: str = "") -> str:
    """The text of `save_html`."""
    plans = _named(plan, title)
    most = max(
        max(one.device_bytes, one.chip.memory if one.chip is not None else 0) for one in plans.values()
    )
    legend = "".join(
        f'<span><i style="background:{color}"></i>{part}</span>'
        for part, color in _COLORS.items()
        if any(one.part(part) for one in plans.values())
    )
    rows = "".join(_row(name, one, most) for name, one in plans.items())
    return _PAGE.format(title=html.escape(title or "plan"), legend=legend, rows=rows)


def _row(name: str, plan: "Plan", most: int) -> str:
    bars = "".join(
        f'<b style="width:{100 * taken / most:.3f}%;background:{_COLORS[part]}" '
        f'title="{part}: {size(taken)}"></b>'
        for part, taken in parts(plan).items()
    )
    mark = ""
    if plan.chip is not None:
        mark = f'<u style="left:{100 * plan.chip.memory / most:.3f}%"></u>'
    told = html.escape(str(plan))
    return f"<h2>{html.escape(name)}: {size(plan.device_bytes)}</h2><div>{bars}{mark}</div><pre>{told}</pre>"


def _named(plan: "Plan | Mapping[str, Plan]", title: str) -> "dict[str, Plan]":
    if isinstance(plan, Mapping) and not plan:
        raise ValueError(message("plan.picture", "there is no plan to draw, got an empty mapping"))
    return dict(plan) if isinstance(plan, Mapping) else {title or "one device": plan}


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }}
h2 {{ font-size: 1rem; margin: 1.6rem 0 .4rem; }}
div {{ position: relative; display: flex; height: 2rem; background: #f1f1f1; }}
div b {{ display: block; height: 100%; }}
div u {{ position: absolute; top: -.3rem; bottom: -.3rem; width: 0; border-left: 3px solid #111; }}
p span {{ margin-right: 1.2rem; }}
p i {{ display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; }}
pre {{ font-size: 12.5px; overflow-x: auto; }}
</style></head><body><h1>{title}</h1><p>{legend}</p>{rows}</body></html>
"""
