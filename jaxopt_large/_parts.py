"""A function of arrays, taken one part of them at a time.

Each result is followed back through the equations that made it. Equations that work element by element
run on a part; what they need of whole arrays (norms, counters, schedules, clip factors) is computed before.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._compat import bind
from .tracing.graph import Constant, Equation, Graph
from .tracing.primitives import known


class NotByPartsError(Exception):
    """A result needs more of an array than the part at hand."""


class ByParts:
    """Results of `graph` as functions of a part of some of its inputs.

    Args:
      graph: the function.
      arrays: inputs of one shape, of which parts will be given.
      results: of the same shape, or without one.
      cut: how many leading axes parts divide.

    Attributes:
      needs: the inputs on which what is computed before depends.
      has_arrays_before: are values of the arrays' shape computed before?

    Raises:
      NotByPartsError: a result cannot be had from parts.
    """

    def __init__(self, graph: Graph, arrays: Iterable[int], results: Iterable[int], cut: int = 1):
        self._graph, self._cut = graph, cut
        self._arrays = {graph.inputs[k]: k for k in arrays}
        self._before: dict[Any, Any] = {}  # variable -> value, None until it is computed
        self._results = {k: graph.outputs[k] for k in results}
        self._shape = graph.types[next(iter(self._arrays))].shape
        self._checked: set[Any] = set()
        for out in self._results.values():
            self._check(out)
        self.needs = graph.inputs_of(self._before)
        self.has_arrays_before = any(
            _shape(graph.types[v]) == self._shape and v not in graph.inputs for v in self._before
        )

    def prepare(self) -> None:
        """Computes what parts share; the inputs that it needs must have been given."""
        found = list(self._before)
        self._before = dict(zip(found, self._graph.computed(found), strict=True))

    def at(self, starts: Sequence[Any], parts: dict[int, Any]) -> dict[int, Any]:
        """The results for one part.

        Args:
          starts: where the part begins, along each axis.
          parts: that part of each of the arrays; all axes kept.
        """
        values: dict[Any, Any] = {v: parts[k] for v, k in self._arrays.items()}
        shape = next(iter(parts.values())).shape

        def part(atom: Any) -> Any:
            if isinstance(atom, Constant):
                whole = self._shape and _shape(atom.value) == self._shape
                return jax.lax.dynamic_slice(jnp.asarray(atom.value), starts, shape) if whole else atom.value
            if atom in values:
                return values[atom]
            if atom in self._before:
                x = self._before[atom]
                return jax.lax.dynamic_slice(x, starts, shape) if _shape(x) == self._shape else x
            eqn = self._graph.made_by[atom]
            if eqn.of.primitive.name == "broadcast_in_dim":
                made = [jnp.broadcast_to(part(eqn.inputs[0]), shape)]
            else:
                made = bind(eqn.of, [part(a) for a in eqn.inputs])
            values.update(zip(eqn.outputs, made, strict=True))
            return values[atom]

        return {k: part(out) for k, out in self._results.items()}

    def _check(self, atom: Any) -> None:
        """Decides where a value is computed: from parts, or before."""
        if isinstance(atom, Constant) or atom in self._arrays or atom in self._checked:
            return
        self._checked.add(atom)
        eqn = self._graph.made_by.get(atom)
        if eqn is not None and self._is_by_part(eqn):
            for operand in eqn.inputs:
                self._check(operand)
            return
        if _shape(self._graph.types[atom]) not in ((), self._shape):
            raise NotByPartsError
        self._before[atom] = None

    def _is_by_part(self, eqn: Equation) -> bool:
        name = eqn.of.primitive.name
        if any(self._graph.types[v].shape != self._shape for v in eqn.outputs):
            return False
        if name == "broadcast_in_dim":
            return self._shape_of(eqn.inputs[0]) == () and len(eqn.inputs) == 1
        if name == "sharding_constraint":
            spec = getattr(eqn.of.params["sharding"], "spec", (None,) * self._cut)
            return not any(spec[: self._cut])  # parts are shorter there than the constraint takes them to be
        shapes = {self._shape_of(a) for a in eqn.inputs}
        return known(eqn.of).element and shapes <= {(), self._shape}

    def _shape_of(self, atom: Any) -> tuple[int, ...]:
        return _shape(atom.value if isinstance(atom, Constant) else self._graph.types[atom])


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(jnp.shape(x) if not hasattr(x, "shape") else x.shape)
