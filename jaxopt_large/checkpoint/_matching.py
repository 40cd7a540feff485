"""What a checkpoint and a tree have in common, and what became of the rest."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .._errors import Problems
from .._paths import nearest
from ._identity import Identity, identities, matched
from ._leaves import Form, form


class RestoreReport(NamedTuple):
    """What `restore_changed` did with each array.

    Attributes:
      kept: path in the tree -> path in the checkpoint.
      new: paths that the checkpoint does not have; they keep the values that they had.
      dropped: paths in the checkpoint that the tree does not have.
      ambiguous: new paths -> the dropped paths that each may be: the tree has more or fewer arrays of
        that kind than the checkpoint. `restore_changed(..., renamed={...})` decides.
    """

    kept: dict[str, str]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    ambiguous: dict[str, tuple[str, ...]]

    def __str__(self) -> str:
        also = f", ambiguous {len(self.ambiguous)}" if self.ambiguous else ""
        lines = [f"kept {len(self.kept)}, new {len(self.new)}, dropped {len(self.dropped)}{also}"]
        lines += [f"  new        {name}" for name in self.new]
        lines += [f"  dropped    {name}" for name in self.dropped]
        lines += [f"  ambiguous  {name}: {' or '.join(may_be)}" for name, may_be in self.ambiguous.items()]
        return "\n".join(lines)


def compared(
    saved: Mapping[str, Any], tree: Any, leaves: Mapping[str, Any], renamed: Mapping[str, str]
) -> RestoreReport:
    """Which of the saved arrays are leaves of a tree.

    Args:
      saved: path -> the manifest's entry.
      tree: what is wanted.
      leaves: its leaves by path.
      renamed: what the user says, path in the tree -> path in the checkpoint.

    Raises:
      ValueError: `renamed` names what is not there, or arrays that do not fit.
    """
    told = _told(saved, leaves, renamed)
    origins = set(told.values())
    wanted = {name: identity for name, identity in identities(tree).items() if name not in told}
    known = {
        name: Identity(x.get("identity", name), tuple(x.get("keys", ())))
        for name, x in saved.items()
        if name not in origins
    }
    pairs, ambiguous = matched(known, wanted)
    fitting = {new: old for new, old in pairs.items() if Form.of_entry(saved[old]) == form(leaves[new])}
    found = told | fitting
    kept = {name: found[name] for name in leaves if name in found}
    origins = set(kept.values())
    return RestoreReport(
        kept,
        new=tuple(name for name in leaves if name not in kept),
        dropped=tuple(name for name in saved if name not in origins),
        ambiguous=ambiguous,
    )


def _told(saved: Mapping[str, Any], leaves: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, str]:
    """Leaf by leaf what `renamed` says of leaves and of whole subtrees."""
    problems, told = Problems("restore_changed"), {}
    for new, old in sorted(renamed.items(), key=lambda names: len(names[0])):  # the longest has the last word
        found = [name for name in leaves if name == new or name.startswith(f"{new}/")]
        if not found:
            near = f"the nearest are {nearest(new, list(leaves))}"
            problems.add(f"renamed names what the tree does not have, got {new!r}", allowed=near)
        told |= {name: old + name[len(new) :] for name in found}
    for new, old in told.items():
        if old not in saved:
            near = f"the nearest are {nearest(old, list(saved))}"
            problems.add(
                f"renamed names what the checkpoint does not have, got {old!r}", at=new, allowed=near
            )
        elif (was := Form.of_entry(saved[old])) != (now := form(leaves[new])):
            problems.add(f"the checkpoint has {was} at {old}, the tree has {now}", at=new)
    problems.raise_if_any()
    return told


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
