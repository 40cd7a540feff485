"""A function taken apart by its results: each result alone, equations they share computed once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from .._compat import bind


class Slices:
    """A traced function whose inputs are given and whose results are asked for one after another.

    Inputs and results are numbered in the order of `jax.tree.leaves`.
    """

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]):
        self._function, self._args = function, args
        closed = jax.make_jaxpr(function)(*args)
        self.jaxpr: Any = closed.jaxpr
        self._values: dict[Any, Any] = dict(zip(self.jaxpr.constvars, closed.consts, strict=True))
        self._made_by = {v: n for n, eqn in enumerate(self.jaxpr.eqns) for v in eqn.outvars}
        self._done: set[int] = set()

    def copy(self) -> "Slices":
        """The same function, given and computed as far as this one."""
        other = object.__new__(Slices)
        other.__dict__.update(self.__dict__)
        other._values, other._done = dict(self._values), set(self._done)
        return other

    def reshaped(self, shapes: Mapping[int, tuple[int, ...]]) -> "Slices":
        """The same function of inputs of other shapes."""
        leaves, treedef = jax.tree.flatten(self._args)
        other = [
            jax.ShapeDtypeStruct(shapes[k], x.dtype)
            if k in shapes
            else jax.ShapeDtypeStruct(x.shape, x.dtype)
            for k, x in enumerate(leaves)
        ]
        return Slices(self._function, treedef.unflatten(other))

    def has(self, index: int) -> bool:
        return self.jaxpr.invars[index] in self._values

    def value(self, index: int) -> Any:
        return self._values[self.jaxpr.invars[index]]

    def give(self, index: int, value: Any) -> None:
        self._values[self.jaxpr.invars[index]] = value

    def inputs_of(self, results: Iterable[int]) -> list[int]:
        """The inputs on which results depend."""
        numbers = {v: i for i, v in enumerate(self.jaxpr.invars)}
        outs = [self.jaxpr.outvars[k] for k in results]
        read = {a for n in self._needed(outs) for a in self.jaxpr.eqns[n].invars if not _is_literal(a)}
        return sorted(numbers[v] for v in {*read, *(o for o in outs if not _is_literal(o))} if v in numbers)

    def advance(self, results: Iterable[int]) -> None:
        """Computes what results need, as far as the inputs given allow."""
        for n in sorted(self._needed(self.jaxpr.outvars[k] for k in results) - self._done):
            if all(_is_literal(a) or a in self._values for a in self.jaxpr.eqns[n].invars):
                self._compute(n)

    def results(self, results: Iterable[int]) -> list[Any]:
        """Computes results; their inputs must have been given."""
        outs = [self.jaxpr.outvars[k] for k in results]
        for n in sorted(self._needed(outs) - self._done):
            self._compute(n)
        return [self._read(v) for v in outs]

    def _compute(self, n: int) -> None:
        eqn = self.jaxpr.eqns[n]
        made = bind(eqn, [self._read(atom) for atom in eqn.invars])
        self._values.update(zip(eqn.outvars, made, strict=True))
        self._done.add(n)

    def _read(self, atom: Any) -> Any:
        return atom.val if _is_literal(atom) else self._values[atom]

    def _needed(self, outs: Iterable[Any]) -> set[int]:
        """The equations on which variables depend."""
        needed: set[int] = set()
        pending = [v for v in outs if not _is_literal(v)]
        while pending:
            n = self._made_by.get(pending.pop())
            if n is not None and n not in needed:
                needed.add(n)
                pending.extend(a for a in self.jaxpr.eqns[n].invars if not _is_literal(a))
        return needed


def _is_literal(atom: Any) -> bool:
    return hasattr(atom, "val")
