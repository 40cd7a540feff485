"""How units are read: as matrices, as matrices turned over, or as what is kept for each matrix."""

import math
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Array

from .roles import View


class Reading(Protocol):
    """How what one device works on as a whole is read."""

    @property
    def inner(self) -> int:
        """Matrices in a unit."""
        ...

    def matrices(self, x: Array) -> Array:
        """[units, *unit] -> [matrices, ...]."""
        ...

    def from_matrices(self, x: Array) -> Array:
        """The inverse."""
        ...


class Turned(NamedTuple):
    """Rows and columns in each other's place."""

    view: View

    @property
    def inner(self) -> int:
        return self.view.inner

    def matrices(self, x: Array) -> Array:
        return self.view.matrices(x).mT

    def from_matrices(self, x: Array) -> Array:
        return self.view.from_matrices(x.mT)


class Each(NamedTuple):
    """An array of `shape` for each of `inner` matrices."""

    inner: int
    shape: tuple[int, ...]

    def matrices(self, x: Array) -> Array:
        return x.reshape(-1, *self.shape)

    def from_matrices(self, x: Array) -> Array:
        inner = (self.inner,) if self.inner > 1 else ()
        return x.reshape(-1, *inner, *self.shape)


class Flat(NamedTuple):
    """A whole array of `shape` as one unit, flattened; its own units are those of `reading`."""

    shape: tuple[int, ...]
    units: tuple[int, ...]
    reading: Reading

    @property
    def inner(self) -> int:
        return math.prod(self.shape[d] for d in self.units) * self.reading.inner

    @property
    def _order(self) -> tuple[int, ...]:
        return (*self.units, *(d for d in range(len(self.shape)) if d not in self.units))

    def matrices(self, x: Array) -> Array:
        apart = x.reshape(-1, *self.shape).transpose(0, *(d + 1 for d in self._order))
        unit = tuple(self.shape[d] for d in self._order[len(self.units) :])
        return self.reading.matrices(apart.reshape(-1, *unit))

    def from_matrices(self, x: Array) -> Array:
        places = np.argsort(self._order)
        apart = self.reading.from_matrices(x).reshape(-1, *(self.shape[d] for d in self._order))
        apart = apart.transpose(0, *(d + 1 for d in places))
        return apart.reshape(len(apart), -1)
