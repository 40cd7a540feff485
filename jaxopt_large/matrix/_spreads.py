"""Where leaves lie while nobody works on them, on the devices of a mesh or of mapped axes."""

import math
from typing import Any

from .._axes import reduction_axes, window_of
from .._compat import axis_size
from .._errors import message
from ._transport import Spread, Team
from .plan import MatrixLeaf, MatrixPlan
from .readings import Each, Flat, Reading
from .roles import View

_LARGE = 2**14  # elements: what is smaller is not worth a collective


def team_of(who: str, plan: MatrixPlan) -> Team:
    """The devices that share the work.

    Raises:
      ValueError: owners are no axes here.
    """
    if plan.mesh is not None:
        return Team(plan.owners, tuple(plan.mesh.shape[n] for n in plan.owners))
    names = reduction_axes(plan.owners)
    try:
        return Team(names, tuple(axis_size(n) for n in names))
    except NameError:
        wrong = f"owners name an axis that is no mapped axis here, got {', '.join(map(repr, names))}"
        do = "Call init with parameters that lie on a mesh, or call init and update inside shard_map or pmap"
        raise ValueError(message(who, wrong, do=do)) from None


def spread_of(leaf: MatrixLeaf, key: Any, x: Any, reading: Reading, plan: MatrixPlan, team: Team) -> Spread:
    """How a leaf lies, and each array like it.

    Args:
      leaf: what was decided of it.
      key: its key path.
      x: the leaf; inside mapped axes it may be this device's share.
      reading: of its units.
      plan: of all leaves.
      team: the devices that share the work.
    """
    units = leaf.view.units
    if plan.mesh is not None:
        parts = [team.size(*names) for names in leaf.axes]
        local = tuple(-(-n // k) for n, k in zip(leaf.shape, parts, strict=True))
        return Spread(leaf.shape, leaf.axes, local, units, reading)
    window, nowhere = window_of(key), tuple[str, ...]()
    if window is None or tuple(x.shape) == leaf.shape:
        return Spread(leaf.shape, (nowhere,) * len(leaf.shape), leaf.shape, units, reading)
    axes = reduction_axes()
    if len(window.starts) == len(leaf.shape):
        cut = tuple(axes if n != whole else nowhere for n, whole in zip(x.shape, leaf.shape, strict=True))
        return Spread(leaf.shape, cut, tuple(x.shape), units, reading)
    size = math.prod(leaf.shape)
    return Spread((size,), (axes,), (x.size,), (), Flat(leaf.shape, units, reading))


def field_spread(
    shape: tuple[int, ...], each: tuple[int, ...], view: View, like: Spread, team: Team
) -> Spread:
    """How a field with an array for each matrix lies: its units with those of the leaf.

    The other devices divide one of its other dimensions, if it is large and one divides evenly.

    Args:
      shape: of the field.
      each: of the array of one matrix.
      view: how the leaf is read.
      like: how the leaf lies.
      team: the devices that share the work.
    """
    reading, nowhere = Each(like.reading.inner, each), tuple[str, ...]()
    if isinstance(like.reading, Flat):
        return Spread(shape, (nowhere,) * len(shape), shape, (), reading)
    count, left = len(view.units), team.without(like.unit_axes)
    axes = [*(like.axes[d] for d in view.units), *(nowhere,) * (len(shape) - count)]
    if math.prod(shape) >= _LARGE and left.devices > 1:
        even = [d for d in range(count, len(shape)) if shape[d] % left.devices == 0]
        for d in even[:1]:
            axes[d] = left.names
    local = [-(-n // team.size(*names)) for n, names in zip(shape, axes, strict=True)]
    local[:count] = [like.local[d] for d in view.units]
    return Spread(shape, tuple(axes), tuple(local), tuple(range(count)), reading)
