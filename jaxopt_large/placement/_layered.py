"""A function of stacked arrays, taken one layer at a time.

Each result is followed back through the equations that made it. Equations that work element by element
run on one layer; what they need of all layers (norms, counters, schedules, clip factors) is computed before.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from .._compat import bind
from ._reductions import ELEMENTWISE
from ._slices import Constant, Equation, Slices

_RESHAPING = {"broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose", "device_put"}
_BY_ELEMENT = ELEMENTWISE - _RESHAPING


class NotLayeredError(Exception):
    """A result needs more of a stacked array than the layer at hand."""


class Layered:
    """Results of `slices` as functions of one layer of some of its inputs.

    Raises:
      NotLayeredError: a result cannot be had from one layer and what is given already.
    """

    def __init__(self, slices: Slices, stacked: Iterable[int], results: Iterable[int]):
        self._slices = slices
        self._stacked = {slices.inputs[k]: k for k in stacked}
        self._outside: dict[Any, Any] = {}  # variable -> value, computed before the loop
        self._results = {k: slices.outputs[k] for k in results}
        self._shape = slices.types[next(iter(self._stacked))].shape
        self._checked: set[Any] = set()
        for out in self._results.values():
            self._check(out)

    def prepare(self) -> None:
        """Computes what layers share."""
        found = list(self._outside)
        self._outside = dict(zip(found, self._slices.computed(found), strict=True))

    def layer(self, index: Any, parts: dict[int, Any]) -> dict[int, Any]:
        """The results for one layer, given that layer of each stacked input, its first axis kept."""
        values: dict[Any, Any] = {v: parts[k] for v, k in self._stacked.items()}

        def part(atom: Any) -> Any:
            if isinstance(atom, Constant):
                return atom.value
            if atom in values:
                return values[atom]
            if atom in self._outside:
                x = self._outside[atom]
                return jax.lax.dynamic_slice_in_dim(x, index, 1) if _shape(x) == self._shape else x
            eqn = self._slices.made_by[atom]
            if eqn.of.primitive.name == "broadcast_in_dim":
                made = [jnp.broadcast_to(part(eqn.inputs[0]), (1, *self._shape[1:]))]
            else:
                made = bind(eqn.of, [part(a) for a in eqn.inputs])
            values.update(zip(eqn.outputs, made, strict=True))
            return values[atom]

        return {k: part(out) for k, out in self._results.items()}

    def _check(self, atom: Any) -> None:
        """Decides where a value is computed: from a layer, or before the loop."""
        if isinstance(atom, Constant) or atom in self._stacked or atom in self._checked:
            return
        self._checked.add(atom)
        eqn = self._slices.made_by.get(atom)
        if eqn is not None and self._is_by_layer(eqn):
            for operand in eqn.inputs:
                self._check(operand)
            return
        foreign = [k for k in self._slices.inputs_of([atom]) if not self._slices.has(k)]
        if foreign or _shape(self._slices.types[atom]) not in ((), self._shape):
            raise NotLayeredError
        self._outside[atom] = None

    def _is_by_layer(self, eqn: Equation) -> bool:
        name = eqn.of.primitive.name
        if any(self._slices.types[v].shape != self._shape for v in eqn.outputs):
            return False
        if name == "broadcast_in_dim":
            return self._shape_of(eqn.inputs[0]) == () and len(eqn.inputs) == 1
        if name == "sharding_constraint":
            spec = getattr(eqn.of.params["sharding"], "spec", (None,))
            return not spec or spec[0] is None  # its first axis is one layer long in the loop
        shapes = {self._shape_of(a) for a in eqn.inputs}
        return name in _BY_ELEMENT and shapes <= {(), self._shape}

    def _shape_of(self, atom: Any) -> tuple[int, ...]:
        return _shape(atom.value if isinstance(atom, Constant) else self._slices.types[atom])


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(jnp.shape(x) if not hasattr(x, "shape") else x.shape)
