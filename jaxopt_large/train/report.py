"""What a run shows at its start and its end: a card, a curve in the terminal, a picture."""

import math
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from .._tables import size
from ..config import Config
from ..data import Dataset
from .chart import as_png, figure, print_bars
from .folder import RunFolder


class Card:
    """The facts of a run, before and after."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        parameters: int,
        state_whole: int,
        state_most: int,
        devices: str,
        folder: RunFolder,
    ):
        self._config, self._dataset, self._parameters = config, dataset, parameters
        self._whole, self._most, self._devices, self._folder = state_whole, state_most, devices, folder
        self.privacy: Callable[[int], str] | None = None  # steps -> what they spend

    def show_start(self, console: Console, step: int) -> None:
        """The model, the data, the rule and the devices; from which step it goes on."""
        train = self._config.train
        table = _table()
        table.add_row("model", f"{self._config.model.kind}, {_count(self._parameters)} parameters")
        table.add_row("data", self._data())
        rules = [
            f"{g.rule} on {glob}" if glob != "*" else g.rule
            for glob, g in self._config.optimizer.groups.items()
        ]
        table.add_row("rule", ", ".join(rules))
        table.add_row("devices", f"{self._devices}, by {self._config.placement.parallel}")
        table.add_row("state", self._state())
        micro = f" in {train.accumulate} parts" if train.accumulate > 1 else ""
        table.add_row(
            "steps",
            f"{train.steps} of {train.batch} examples{micro}" + (f", from step {step}" if step else ""),
        )
        if self.privacy is not None:
            table.add_row("privacy", self.privacy(train.steps))
        console.print(Panel(table, title=f"run {self._config.name}", title_align="left", expand=False))

    def show_end(self, console: Console, summary: dict[str, Any], metrics: list[dict[str, Any]]) -> None:
        """The loss curve and the figures of `summary.json`."""
        unit = f"nats/{self._dataset.unit}"
        curve = [m["loss"] for m in metrics if m.get("loss") is not None]
        if len(curve) > 1:
            print_bars(console, f"training loss, {unit}", curve, len(curve), log=True)
        table = _table()
        if summary["best_validation_loss"] is not None:
            best, last = summary["best_validation_loss"], summary["final_validation_loss"]
            table.add_row("validation", f"{last:.4f} {unit} at the end, {best:.4f} at best")
        rate = "tokens" if self._dataset.tokens_per_example > 1 else "examples"
        speed = f"{summary['tokens_per_second']:,.0f} {rate}/s"
        table.add_row("time", f"{summary['wall_seconds']:.1f} s for {summary['steps']} steps, {speed}")
        table.add_row("state", self._state())
        if self.privacy is not None:
            table.add_row("privacy", self.privacy(summary["steps"]))
        table.add_row("skipped", f"{summary['skipped_steps']} steps left out by guards")
        table.add_row("folder", str(self._folder.path))
        resume = self._folder.resume_command
        if summary["interrupted"]:
            table.add_row("go on", resume)
            title = f"run {self._config.name} stopped at step {summary['steps']}, saved"
        else:
            table.add_row("go on", f"{resume} --set train.steps=...")
            title = f"run {self._config.name} finished"
        console.print(Panel(table, title=title, title_align="left", expand=False))

    def _data(self) -> str:
        facts = self._dataset.facts
        size = f"{facts['files']} files, {_amount(facts)}" if "files" in facts else ""
        size = size or f"{facts['examples']} examples"
        return f"{self._dataset.name}, {size}, SHA-256 {facts['sha256'][:12]}"

    def _state(self) -> str:
        share = self._most / self._whole if self._whole else 1.0
        return f"{size(self._most)} per device, {size(self._whole)} unsharded ({share:.1%})"


def draw_curves(
    metrics: list[dict[str, Any]], config: Config, dataset: Dataset, console: Console
) -> bytes | None:
    """The curves as a PNG, where matplotlib is installed."""
    picture = figure(console, 8, 5)
    if picture is None:
        return None
    train = [(m["step"], m["loss"]) for m in metrics if m.get("loss") is not None]
    valid = [(m["step"], m["validation_loss"]) for m in metrics if m.get("validation_loss") is not None]
    norms = [(m["step"], m["gradient_norm"]) for m in metrics if m.get("gradient_norm") is not None]
    top, bottom = picture.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    if train:
        top.plot(*zip(*train, strict=True), color="#9ab", linewidth=1, label="training")
    if valid:
        top.plot(*zip(*valid, strict=True), color="#c33", marker="o", markersize=4, label="validation")
    top.set_ylabel(f"loss, nats/{dataset.unit}")
    top.set_title(f"{config.name}: {config.model.kind} on {dataset.name}", loc="left")
    top.legend(frameon=False)
    if norms:
        bottom.plot(*zip(*norms, strict=True), color="#678", linewidth=1)
        if any(norm > 0 for _, norm in norms):
            bottom.set_yscale("log")
    bottom.set_ylabel("gradient norm")
    bottom.set_xlabel("step")
    return as_png(picture)


def _table() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _count(number: int) -> str:
    digits = int(math.log10(max(number, 1))) // 3
    return f"{number / 1000**digits:.3g}{('', ' k', ' M', ' G', ' T')[digits]}"


def _amount(facts: dict[str, Any]) -> str:
    """How much there is to train on."""
    if "train_tokens" in facts:
        return f"{facts['train_tokens'] / 1e6:.1f} M tokens"
    return f"{facts['train_bytes'] / 1e6:.1f} MB"
