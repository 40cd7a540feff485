"""Going on with a run whose configuration may have changed in between."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import yaml
from rich.console import Console

from .._errors import message
from ..config import Config, changes, settings
from ..data import Dataset, differences
from ..rules.learning_rate import ScaleByScheduleState
from ..safety import SkipNonfiniteState
from ._errors import RunError
from .folder import Loaded, OtherTreeError, RunFolder
from .step import find

_NEW = -1  # steps that a schedule has counted which is not in the checkpoint
_SHOWN = 10  # lines of what is not common


def resumed(
    folder: RunFolder,
    like: Any,
    config: Config,
    dataset: Dataset,
    console: Console,
    *,
    fall_back: bool,
    changed: bool,
) -> tuple[Any, dict[str, Any]] | None:
    """The tree and the position of the newest checkpoint; None where there is none.

    What has changed in the configuration since is shown, whether it matters to the arrays or not.

    Args:
      folder: of the run.
      like: a tree of arrays as the run has them at its start.
      config: as it is now.
      dataset: as it is now.
      console: where to show what has changed.
      fall_back: pass over damaged checkpoints.
      changed: read what `like` and the checkpoint have in common.

    Raises:
      RunError: the checkpoint holds other arrays, or is of other data; or nothing is common.
      CheckpointError: it is damaged.
    """
    if changed:
        like = _with_counts(like, lambda _: _NEW)
    try:
        found = folder.load(like, fall_back=fall_back, changed=changed)
    except OtherTreeError as error:
        raise RunError(_refusal(error, _since(folder, error.metadata, config))) from error
    if found is None:
        console.print("Nothing to resume from: starting at step 0.")
        return None
    since = _since(folder, found.metadata, config)
    _check_data(found, dataset, since, folder)
    if since:
        _show(console, f"Changed since step {found.step}:\n{_lines(since)}")
    if found.report is None:
        return found.tree, found.metadata["position"]
    if not any(name.startswith("params/") for name in found.report.kept):
        wrong = f"no parameter is common to the checkpoint of step {found.step} and this configuration"
        raise RunError(message("train", wrong, do="Start a run of another name"))
    _show(console, f"From the checkpoint of step {found.step}: {found.report}")
    return _going_on(found), found.metadata["position"]


def _since(folder: RunFolder, metadata: dict[str, Any], config: Config) -> list[str]:
    """What has changed since a checkpoint was written; earlier ones do not say with which configuration."""
    before = metadata.get("config") or yaml.safe_load(folder.configuration()) or {}
    return changes(before, settings(config))


def _refusal(error: OtherTreeError, since: list[str]) -> str:
    """What has changed, as far as the configurations tell, and what would become of the arrays."""
    head = f"train: the checkpoint of step {error.step} belongs to another model or rule"
    if since:
        head += f". Changed since:\n{_lines(since)}"
    else:
        head += ", though no setting has changed: another version of jaxopt_large may have written it."
    shown = _first(str(error.report).splitlines())
    do = "Add --changed to go on with what is common, take the settings back, or take another name."
    return "\n".join([head, "Its arrays and those of this configuration:", _lines(shown), do])


def _check_data(found: Loaded, dataset: Dataset, since: list[str], folder: RunFolder) -> None:
    known, now = found.metadata["data"], dataset.facts["sha256"]
    before = known.get("sha256")
    is_former = dataset.former is not None and "hashed" not in known
    if before == now or (is_former and dataset.former and before == dataset.former()):
        return
    text = message(
        "train",
        f"the data has changed since the checkpoint, got SHA-256 {now}",
        allowed=f"it was {before}",
        do="Start a run of another name",
    )
    settings_of_data = [line for line in since if line.startswith(("data", "seed"))]
    kept = folder.files()
    files = _first(differences(kept, dict(dataset.files))) if kept else []
    raise RunError("\n".join([text, *(_lines(some) for some in (settings_of_data, files) if some)]))


def _with_counts(tree: Any, count: Callable[[Any], Any]) -> Any:
    """The tree, with other counts of steps in its schedules."""

    def is_schedule(x: Any) -> bool:
        return isinstance(x, ScaleByScheduleState)

    def counted(x: Any) -> Any:
        if not is_schedule(x):
            return x
        return x._replace(count=jnp.full_like(x.count, count(x.count), device=x.count.sharding))

    return jax.tree.map(counted, tree, is_leaf=is_schedule)


def _going_on(found: Loaded) -> Any:
    """Schedules that are new go on at the step to which the run has come, and do not warm up again."""
    guard = find(SkipNonfiniteState, found.tree["state"])
    steps = found.metadata["position"]["step"] - (0 if guard is None else int(guard.skipped))
    return _with_counts(found.tree, lambda count: steps if count == _NEW else count)


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], *([f"  and {more} more"] if more > 0 else [])]


def _lines(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)


def _show(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
