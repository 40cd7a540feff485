"""A function taken apart by its results: each result alone, equations they share computed once."""

import dataclasses
import itertools
from collections.abc import Callable, Container, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._compat import bind
from .calls import callee
from .primitives import known

Variable = int


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """A literal, in the place of a variable."""

    value: Any


def variables(atoms: Iterable[Any]) -> list[Variable]:
    """Those that are no constants."""
    return [a for a in atoms if not isinstance(a, Constant)]


class Equation(NamedTuple):
    """One primitive, applied."""

    of: Any  # the equation of the jaxpr
    inputs: tuple[Any, ...]  # variables and constants
    outputs: tuple[Variable, ...]


class Graph:
    """A traced function whose inputs are given and whose results are asked for one after another.

    Calls within it are inlined, so that a result does not need what only its neighbors need. Inputs and
    results are numbered in the order of `jax.tree.leaves`.

    Args:
      closed: what `jax.make_jaxpr` makes of the function.
      keep: calls that stay equations; by default none.
    """

    def __init__(self, closed: Any, keep: Callable[[Any], bool] = lambda equation: False):
        self._keep = keep
        self.equations: list[Equation] = []
        self._fresh = itertools.count()
        self.types: dict[Variable, Any] = {}
        self.inputs = [self._variable(v) for v in closed.jaxpr.invars]
        self._values: dict[Variable, Any] = {}
        self._constants: set[Variable] = set()
        self.outputs = self._inline(closed.jaxpr, self.inputs, closed.consts)
        self.made_by = {v: eqn for eqn in self.equations for v in eqn.outputs}
        self._places = {v: n for eqn in self.equations for n, v in enumerate(eqn.outputs)}
        self._numbers = {v: n for n, v in enumerate(self.inputs)}
        self._order = {id(eqn): n for n, eqn in enumerate(self.equations)}

    def _variable(self, v: Any) -> Variable:
        number = next(self._fresh)
        self.types[number] = v.aval
        return number

    def _inline(self, jaxpr: Any, inputs: list[Any], constants: Iterable[Any]) -> list[Any]:
        """Appends a jaxpr's equations, with variables of their own: JAX shares those of cached calls."""
        names: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        for v, value in zip(jaxpr.constvars, constants, strict=True):
            names[v] = self._variable(v)
            self._values[names[v]] = value
            self._constants.add(names[v])

        def read(atom: Any) -> Any:
            return Constant(atom.val) if hasattr(atom, "val") else names[atom]

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            inner = None if self._keep(eqn) else _inlined(eqn)
            if inner is not None:
                outputs = self._inline(inner.jaxpr, operands, inner.constants)
            else:
                outputs = [self._variable(v) for v in eqn.outvars]
                self.equations.append(Equation(eqn, tuple(operands), tuple(outputs)))
            names.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def know(self, variable: Variable, value: Any) -> None:
        """Gives a variable that was computed elsewhere."""
        self._values[variable] = value

    def is_constant(self, variable: Variable) -> bool:
        """Was a variable there before the function was called?"""
        return variable in self._constants

    def is_input(self, variable: Variable) -> bool:
        """Is a variable one of the function's inputs?"""
        return variable in self._numbers

    def place_of(self, variable: Variable) -> int:
        """Which of its equation's outputs a variable is."""
        return self._places[variable]

    def has(self, index: int) -> bool:
        """Has an input been given?"""
        return self.inputs[index] in self._values

    def give(self, index: int, value: Any) -> None:
        """Gives an input."""
        self._values[self.inputs[index]] = value

    def type_of(self, index: int) -> Any:
        """Shape and dtype of a result."""
        out = self.outputs[index]
        return jax.typeof(out.value) if isinstance(out, Constant) else self.types[out]

    def inputs_of(self, atoms: Iterable[Any]) -> list[int]:
        """The inputs on which variables depend."""
        atoms = list(atoms)
        read = {a for eqn in self.needed(atoms) for a in eqn.inputs} | set(atoms)
        return sorted(self._numbers[v] for v in read if v in self._numbers)

    def results(self, results: Iterable[int]) -> list[Any]:
        """Computes results; their inputs must have been given."""
        return self.computed([self.outputs[k] for k in results])

    def computed(self, atoms: Iterable[Any]) -> list[Any]:
        """Computes variables; their inputs must have been given."""
        atoms = list(atoms)
        for eqn in self.needed(atoms, self._values):
            made = bind(eqn.of, [self._read(atom) for atom in eqn.inputs])
            self._values.update(zip(eqn.outputs, made, strict=True))
        return [self._read(a) for a in atoms]

    def side_by_side(self, numbers: Iterable[Iterable[Any]]) -> list[Any]:
        """Computes scalars of many: each once where it is the same for all, else as a vector.

        What differs only by constants is computed as a vector too, not one number after another: compilers
        would make a function for each.
        """
        found: dict[tuple[Any, ...], Any] = {}

        def vector(atoms: tuple[Any, ...]) -> Any:
            if atoms not in found:
                found[atoms] = self._vector(atoms, vector)
            return found[atoms]

        return [vector(tuple(atoms)) for atoms in numbers]

    def _vector(self, atoms: tuple[Any, ...], vector: Callable[..., Any]) -> Any:
        if len(set(atoms)) == 1:
            return self.computed(atoms[:1])[0]
        if all(isinstance(a, Constant) for a in atoms):
            return jnp.stack([jnp.asarray(a.value) for a in atoms])
        equations = [None if a in self._values else self.made_by.get(a) for a in atoms]
        kinds = {e and (e.of.primitive.name, str(e.of.params)) for e in equations}
        first = equations[0]
        if len(kinds) > 1 or first is None or not self._is_of_integers(first):
            return jnp.stack(self.computed(atoms))
        operands = [vector(xs) for xs in zip(*(e.inputs for e in equations if e), strict=True)]
        return bind(first.of, [jnp.broadcast_to(x, (len(atoms),)) for x in operands])[0]

    def _is_of_integers(self, equation: Equation) -> bool:
        """Is it arithmetic of integers, as keys are mixed with? Of vectors it is the same to the bit."""
        atoms = (*equation.inputs, *equation.outputs)
        kinds = [jax.typeof(a.value) if isinstance(a, Constant) else self.types[a] for a in atoms]
        return known(equation.of).element and all(jnp.issubdtype(kind.dtype, jnp.integer) for kind in kinds)

    def _read(self, atom: Any) -> Any:
        return atom.value if isinstance(atom, Constant) else self._values[atom]

    def needed(self, atoms: Iterable[Any], known: Container[Any] = ()) -> list[Equation]:
        """The equations on which variables depend, back to those that are known, in their order."""
        needed: dict[int, Equation] = {}
        pending = variables(atoms)
        while pending:
            v = pending.pop()
            eqn = None if v in known else self.made_by.get(v)
            if eqn is not None and self._order[id(eqn)] not in needed:
                needed[self._order[id(eqn)]] = eqn
                pending.extend(variables(eqn.inputs))
        return [needed[n] for n in sorted(needed)]


def has_effects(closed: Any) -> bool:
    """Does a traced function print, call back or check? That belongs to no result."""
    return any(type(e).__name__ != "NamedAxisEffect" for e in closed.effects)  # that only names an axis


def _inlined(equation: Any) -> Any:
    """What a call calls; None for other equations, and for calls that say where their results are placed."""
    if not known(equation).call:
        return None
    shardings = (*equation.params.get("in_shardings", ()), *equation.params.get("out_shardings", ()))
    if any(isinstance(s, jax.sharding.Sharding) for s in shardings):
        return None
    return callee(equation)
