"""Units travel to the devices that work on them, and back: one exchange for many arrays of one size.

All of it runs on one device's parts, inside mapped axes: those of `shard_map` around a step under `jit`,
or of the user's own `shard_map` or `pmap`. With no axis at all nothing travels.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._compat import all_gather_invariant, as_varying, axis_size
from .readings import Reading


class Spread(NamedTuple):
    """How an array lies on devices while nobody works on it, and how it is read.

    Attributes:
      shape: of the whole.
      axes: for each dimension the mapped axes that divide it, major first.
      local: the shape of one device's part; zeros fill the last ones.
      units: the dimensions that count units.
      reading: of a unit.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[str, ...], ...]
    local: tuple[int, ...]
    units: tuple[int, ...]
    reading: Reading

    @property
    def unit_axes(self) -> tuple[str, ...]:
        """The axes along which devices have different units."""
        return tuple(name for d in self.units for name in self.axes[d])

    @property
    def rest(self) -> tuple[int, ...]:
        """The dimensions of a unit."""
        return tuple(d for d in range(len(self.shape)) if d not in self.units)


class Team(NamedTuple):
    """The devices that share work.

    Attributes:
      names: mapped axes.
      sizes: how many devices each has.
    """

    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    def of(self, names: Sequence[str]) -> "Team":
        """The part of it along some axes, in its order."""
        kept = [n for n in self.names if n in names]
        return Team(tuple(kept), tuple(self.size(n) for n in kept))

    def without(self, names: Sequence[str]) -> "Team":
        """The part of it along the other axes."""
        return self.of([n for n in self.names if n not in names])

    def size(self, *names: str) -> int:
        """How many devices there are along some axes."""
        return math.prod(self.sizes[self.names.index(n)] for n in names)

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)


def _devices(names: Sequence[str]) -> int:
    """How many devices there are along mapped axes."""
    return math.prod(map(axis_size, names))


def _place(names: Sequence[str]) -> Array:
    """This device's place along mapped axes, the first of them major."""
    place = jnp.int32(0)
    for name in names:
        place = place * axis_size(name) + jax.lax.axis_index(name)
    return place


def own_part(x: Array, spread: Spread) -> Array:
    """This device's part of a whole array, inside mapped axes."""
    for dim, names in enumerate(spread.axes):
        if names:
            length = spread.local[dim]
            widths = [(0, 0)] * x.ndim
            widths[dim] = (0, length * _devices(names) - x.shape[dim])
            x = jax.lax.dynamic_slice_in_dim(jnp.pad(x, widths), _place(names) * length, length, axis=dim)
    return x


class _Layout(NamedTuple):
    """How a unit's parts make the whole, and how that is read."""

    shape: tuple[int, ...]  # of the whole unit
    axes: tuple[tuple[str, ...], ...]
    local: tuple[int, ...]  # of one device's part
    reading: Reading


class Parcel(NamedTuple):
    """Arrays of equal parts that travel together, in the order of their units.

    Attributes:
      spreads: of each array, all with the same axes along which units lie, and the same over which they are
        divided.
      team: all devices.
    """

    spreads: tuple[Spread, ...]
    team: Team

    # --- sizes ------------------------------------------------------------------------------------------

    @property
    def key(self) -> Any:
        """What arrays that travel together have in common."""
        elements = math.prod(self._layout(self.spreads[0]).local)
        return self.spreads[0].unit_axes, self.dividing, elements, self.spreads[0].reading.inner

    @property
    def free(self) -> Team:
        """Along which devices have the same units, whole or in parts."""
        return self.team.without(self.spreads[0].unit_axes)

    @property
    def dividing(self) -> Team:
        """Along which each has a part of every unit."""
        first = self.spreads[0]
        return self.free.of([name for d in first.rest for name in first.axes[d]])

    @property
    def repeating(self) -> Team:
        """Along which each has the same."""
        return self.free.without(self.dividing.names)

    def _layout(self, spread: Spread) -> _Layout:
        rest = spread.rest
        return _Layout(
            tuple(spread.shape[d] for d in rest),
            tuple(spread.axes[d] for d in rest),
            tuple(spread.local[d] for d in rest),
            spread.reading,
        )

    def units(self, spread: Spread) -> int:
        """Units of an array on one device, whole or in parts."""
        return math.prod(spread.local[d] for d in spread.units)

    @property
    def rows(self) -> int:
        """Units that each device works on."""
        return -(-sum(map(self.units, self.spreads)) // self.free.devices)

    # --- the way there ----------------------------------------------------------------------------------

    def gathered(self, parts: Sequence[Array]) -> Array:
        """What this device works on, whole: [matrices, ...]."""
        free, dividing = self.free, self.dividing
        x = jnp.concatenate([self._rows_of(p, s) for p, s in zip(parts, self.spreads, strict=True)])
        size = self.rows * free.devices
        if len(x) < size:
            x = jnp.pad(x, ((0, size - len(x)), (0, 0)))
        x = x.reshape(self.rows, *free.sizes, -1)
        for name in reversed(free.names):
            if name not in dividing.names:
                at = jax.lax.axis_index(name)
                x = jax.lax.dynamic_index_in_dim(x, at, 1 + free.names.index(name), keepdims=False)
        x = jnp.moveaxis(x.reshape(self.rows, dividing.devices, -1), 1, 0)
        x = self._exchanged(x)
        return jnp.concatenate([self._whole(x[:, run.start : run.stop], run) for run in self._runs()])

    def _rows_of(self, part: Array, spread: Spread) -> Array:
        """A part as [units, elements]."""
        order = (*spread.units, *spread.rest)
        return part.reshape(spread.local).transpose(order).reshape(self.units(spread), -1)

    def _exchanged(self, x: Array) -> Array:
        """[devices, rows, elements]: the n-th goes to the n-th device, the n-th comes from it."""
        names = self.dividing.names
        if not names:
            return x
        for name in names:
            x = as_varying(x, name)
        return jax.lax.all_to_all(x, names if len(names) > 1 else names[0], 0, 0, tiled=True)

    def _whole(self, x: Array, run: "_Run") -> Array:
        made = [self._joined(x, layout) for layout in run.layouts]
        return made[0] if len(made) == 1 else self._chosen(made, run)

    def _joined(self, x: Array, layout: _Layout) -> Array:
        """[devices, rows, elements] -> [matrices, ...]."""
        dividing = self.dividing
        x = x.reshape(*dividing.sizes, x.shape[1], *layout.local)
        count = len(dividing.names)
        order = [count]
        for d, names in enumerate(layout.axes):
            order += [*(dividing.names.index(n) for n in names), count + 1 + d]
        x = x.transpose(order).reshape(-1, *self._padded(layout))
        return layout.reading.matrices(x[(slice(None), *(slice(n) for n in layout.shape))])

    # --- the way back -----------------------------------------------------------------------------------

    def returned(self, x: Array) -> list[Array]:
        """The inverse of `gathered`: this device's part of each array."""
        free, dividing = self.free, self.dividing
        each = len(x) // self.rows  # matrices in a unit
        runs = self._runs()
        parts = [self._parts(x[run.start * each : run.stop * each], run) for run in runs]
        x = jnp.concatenate(parts, axis=1)
        x = self._exchanged(x).reshape(*dividing.sizes, self.rows, -1)
        names = list(dividing.names)
        for name in free.names:
            if name not in names:
                x = all_gather_invariant(as_varying(x, name)[None], name, axis=0)
                names.insert(0, name)
        x = x.transpose(len(names), *(names.index(n) for n in free.names), len(names) + 1)
        x = x.reshape(self.rows * free.devices, -1)
        ends = [0, *itertools.accumulate(map(self.units, self.spreads))]
        return [
            self._part(x[start:stop], spread)
            for spread, start, stop in zip(self.spreads, ends, ends[1:], strict=False)
        ]

    def _part(self, x: Array, spread: Spread) -> Array:
        order = (*spread.units, *spread.rest)
        places = np.argsort(order)
        return x.reshape([spread.local[d] for d in order]).transpose(places)

    def _parts(self, x: Array, run: "_Run") -> Array:
        made = [self._taken_apart(x, layout) for layout in run.layouts]
        return made[0] if len(made) == 1 else self._chosen(made, run)

    def _taken_apart(self, x: Array, layout: _Layout) -> Array:
        """[matrices, ...] -> [devices, rows, elements]."""
        dividing = self.dividing
        whole = self._padded(layout)
        x = layout.reading.from_matrices(x).reshape(-1, *layout.shape)
        x = jnp.pad(x, [(0, 0), *((0, n - m) for n, m in zip(whole, layout.shape, strict=True))])
        sizes, order = [], {}
        for d, names in enumerate(layout.axes):
            for name in names:
                order[name] = 1 + len(sizes)
                sizes.append(dividing.size(name))
            order[d] = 1 + len(sizes)
            sizes.append(layout.local[d])
        x = x.reshape(len(x), *sizes)
        first = [order[name] for name in dividing.names]
        x = x.transpose(*first, 0, *(order[d] for d in range(len(layout.shape))))
        return x.reshape(dividing.devices, x.shape[len(first)], -1)

    def _padded(self, layout: _Layout) -> tuple[int, ...]:
        """The shape that a unit's parts make."""
        parts = [self.team.size(*names) for names in layout.axes]
        return tuple(n * k for n, k in zip(layout.local, parts, strict=True))

    # --- rows in which devices have units of different shapes ---------------------------------------------

    def _runs(self) -> list["_Run"]:
        """Rows of units that lie alike, one after another."""
        devices = self.free.devices
        layouts = [self._layout(s) for s in self.spreads for _ in range(self.units(s))]
        layouts += layouts[-1:] * (self.rows * devices - len(layouts))
        runs: list[_Run] = []
        for row in range(self.rows):
            mine = layouts[row * devices : (row + 1) * devices]
            found = tuple(dict.fromkeys(mine))
            if runs and runs[-1].layouts == found and len(found) == 1:
                runs[-1] = runs[-1]._replace(stop=row + 1)
            else:
                runs.append(_Run(row, row + 1, found, tuple(found.index(x) for x in mine)))
        return runs

    def _chosen(self, made: list[Array], run: "_Run") -> Array:
        """Of one row: what this device's unit is."""
        which = jnp.asarray(np.asarray(run.which, np.int32))
        return jax.lax.select_n(which[_place(self.free.names)], *made)


class _Run(NamedTuple):
    """Rows whose units are of the same layouts."""

    start: int
    stop: int
    layouts: tuple[_Layout, ...]
    which: tuple[int, ...]  # of one row: the layout of each device's unit
