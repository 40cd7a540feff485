"""What a checkpoint and a tree have in common, and what became of the rest."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ._errors import Problems
from ._identity import identities
from ._paths import nearest
from ._stored import Form, form


class RestoreReport(NamedTuple):
    """What `restore_changed` did with each array.

    Attributes:
      kept: path in the tree -> path in the checkpoint.
      new: paths that the checkpoint does not have; they keep the values that they had.
      dropped: paths in the checkpoint that the tree does not have.
    """

    kept: dict[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"kept {len(self.kept)}, new {len(self.new)}, dropped {len(self.dropped)}"]
        lines += [f"  new      {name}" for name in self.new]
        lines += [f"  dropped  {name}" for name in self.dropped]
        return "\n".join(lines)


def compared(saved: Mapping[str, Any], tree: Any, leaves: Mapping[str, Any]) -> RestoreReport:
    """Which of the saved arrays are leaves of a tree.

    Args:
      saved: path -> the manifest's entry.
      tree: what is wanted.
      leaves: its leaves by path.
    """
    names = identities(tree)
    known = {x.get("identity", name): name for name, x in saved.items()}
    kept = {}
    for name, x in leaves.items():
        old = known.get(names[name])
        if old is not None and Form.of_entry(saved[old]) == form(x):
            kept[name] = old
    origins = set(kept.values())
    return RestoreReport(
        kept,
        new=tuple(name for name in leaves if name not in kept),
        dropped=tuple(name for name in saved if name not in origins),
    )


def check_same(source: str, saved: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Raises unless the saved arrays are those of a tree; names every difference.

    Raises:
      ValueError: arrays are missing, left over, or of another shape or dtype.
    """
    problems, where = Problems("restore"), f"checkpoint {source!r}"
    for name in sorted(leaves.keys() - saved.keys()):
        near = f"the nearest are {nearest(name, sorted(saved))}"
        problems.add(f"{where} has no array", at=name, allowed=near)
    for name in sorted(saved.keys() - leaves.keys()):
        problems.add(f"{where} holds an array that was not asked for", at=name)
    for name in sorted(saved.keys() & leaves.keys()):
        was, now = Form.of_entry(saved[name]), form(leaves[name])
        if was != now:
            problems.add(f"{where} has {was}, asked for {now}", at=name)
    if problems.found:
        problems.found.append("It belongs to another model or rule.")
    problems.raise_if_any()
