"""Counters go where their moments go: what moments are divided by depends on how often they were averaged."""

from collections.abc import Callable, Container, Hashable, Mapping
from typing import NamedTuple


class Stand(NamedTuple):
    """Where an array of a state stands.

    Attributes:
      node: the place of the state that has the field.
      field: its name.
      counts: is it a counter, and not an array of a parameter?
    """

    node: Hashable
    field: str
    counts: bool


def count_on(
    saved: Mapping[str, Stand],
    wanted: Mapping[str, Stand],
    kept: dict[str, str],
    *,
    same: Callable[[str, str], bool],
    fits: Callable[[str, str], bool],
    told: Container[str] = (),
) -> dict[str, tuple[str, ...]]:
    """Lets counters that found no origin count on from where the moments beside them come from.

    Moments whose counter is not there start anew with it.

    Args:
      saved: path -> where it stands, of what there was.
      wanted: of what there is to be.
      kept: wanted path -> saved path; completed.
      same: (saved path, saved path) -> do two counters say the same?
      fits: (saved path, wanted path) -> may a counter take the place of another?
      told: wanted paths that stay as `kept` has them.

    Returns:
      Counters whose moments come from counters that differ -> those; neither they nor the moments are kept.
    """
    counters = {(s.node, s.field): at for at, s in saved.items() if s.counts}
    beside: dict[Hashable, list[str]] = {}
    for at, s in wanted.items():
        if not s.counts and kept.get(at) in saved:
            beside.setdefault(s.node, []).append(at)
    apart: dict[str, tuple[str, ...]] = {}
    for at, s in wanted.items():
        moments = beside.get(s.node, [])
        if not s.counts or at in kept or not moments:
            continue
        found = {(node := saved[kept[m]].node): counters.get((node, s.field)) for m in moments}
        origins = [old for old in found.values() if old is not None and fits(old, at)]
        if len(origins) == len(found) and all(same(old, origins[0]) for old in origins):
            kept[at] = origins[0]
            continue
        if len(origins) == len(found):
            apart[at] = tuple(origins)
        for m in moments:
            if m not in told:
                kept.pop(m, None)
    return apart
