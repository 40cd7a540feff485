"""The dataflow split: a traced step, taken apart into one pass per parameter.

From each result the equations are followed back as long as they work element by element, or are codecs.
What else they need (norms, counters, schedules, matrix products) is computed before, by XLA.
"""

import dataclasses
import itertools
from collections.abc import Container, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._encoded import is_encoded, scale_shape
from ..tracing.calls import Opaque, meaning_of
from ..tracing.graph import Constant, Equation, Graph, Variable, variables
from ..tracing.primitives import known
from .codecs import CodecCall, codec_of
from .passes import Order, Pass


class _NotByPassError(Exception):
    """A result cannot be had element by element."""


class _Walk:
    """One result, followed back."""

    def __init__(self, graph: Graph, shape: tuple[int, ...]):
        self._graph, self.shape = graph, shape
        # of each variable that is no scalar: is it an array of the pass's shape, or scales in some order?
        self.kinds: dict[Variable, Order | None] = {}
        self.inputs: set[Variable] = set()
        self.scalars: set[Variable] = set()
        self.equations: dict[int, Equation] = {}  # by the first variable that they make

    def follow(self, atom: Any, order: Order | None) -> None:
        """Follows an array, or scales in an order."""
        pending = [(atom, order)]
        while pending:
            atom, order = pending.pop()
            if isinstance(atom, Constant):
                if getattr(atom.value, "shape", ()) != ():
                    raise _NotByPassError  # kernels cannot close over arrays
                continue
            if atom in self.kinds:
                if self.kinds[atom] != order:
                    raise _NotByPassError  # one variable cannot be read both as an array and as scales
                continue
            self.kinds[atom] = order
            eqn = self._graph.made_by.get(atom)
            operands = None if eqn is None else self._operands(eqn, atom, order)
            if eqn is None or operands is None:
                if self._graph.types[atom].shape != self._expected(order):
                    raise _NotByPassError
                # the walk ends: an input of the step, or something that XLA computes before
                self.inputs.add(atom)
                continue
            if known(eqn.of).handed:  # a barrier hands on many arrays: each by itself
                eqn = Equation(eqn.of, (operands[0][0],), (atom,))
            self.equations[eqn.outputs[0]] = eqn
            for a, kind in operands:
                if kind == "scalar":
                    self.scalars.update(() if isinstance(a, Constant) else (a,))
                else:
                    pending.append((a, kind))

    def _expected(self, order: Order | None) -> tuple[int, ...]:
        return self.shape if order is None else scale_shape(self.shape, order)

    def _operands(self, eqn: Equation, atom: Any, order: Order | None) -> list[tuple[Any, Any]] | None:
        """What an equation needs, each with its kind; None: it is not made element by element."""
        if self._graph.types[atom].shape != self._expected(order):
            return None
        codec = codec_of(eqn.of)
        if codec is not None:
            return self._of_codec(codec, eqn, atom, order)
        name = eqn.of.primitive.name
        # what is only handed on is followed before shapes are compared: barriers hold arrays of many shapes
        if known(eqn.of).handed and len(eqn.inputs) == len(eqn.outputs):
            return [(eqn.inputs[self._graph.place_of(atom)], order)]
        if name == "broadcast_in_dim":
            return [(eqn.inputs[0], "scalar")] if [self._shape_of(a) for a in eqn.inputs] == [()] else None
        if not known(eqn.of).element:
            return None  # before it looks at what may be all leaves' arrays
        shapes = [self._shape_of(a) for a in eqn.inputs]
        if any(s not in ((), self._expected(order)) for s in shapes):
            return None
        if any(self._graph.types[v].shape != self._expected(order) for v in eqn.outputs):
            return None
        return [(a, order if s else "scalar") for a, s in zip(eqn.inputs, shapes, strict=True)]

    def _of_codec(
        self, codec: CodecCall, eqn: Equation, atom: Any, order: Order | None
    ) -> list[tuple[Any, Any]] | None:
        if codec.order and len(codec.order) != len(self.shape):
            return None  # it was mapped over
        if not codec.writes:
            first, *rest = eqn.inputs
            kind = codec.order if codec.kind == "decode" else None
            return [(first, None), *((a, kind) for a in rest)] if order is None else None
        if len(eqn.inputs) - codec.arrays - 1 != len(self.shape):
            return None  # it was mapped over, or is a run of a flattened array
        # codes and scales come out of one call: whichever is asked for, both belong to the pass
        for v, kind in zip(eqn.outputs, (None, codec.order or None), strict=False):
            if v == atom and kind != order:
                return None
            self.kinds.setdefault(v, kind)
        return [(a, None if n < codec.arrays else "scalar") for n, a in enumerate(eqn.inputs)]

    def _shape_of(self, atom: Any) -> tuple[int, ...]:
        if isinstance(atom, Constant):
            return tuple(getattr(atom.value, "shape", ()))
        return tuple(self._graph.types[atom].shape)


def split(graph: Graph, results: dict[int, tuple[tuple[int, ...], Order | None]]) -> list[Pass]:
    """The passes of a step.

    Args:
      graph: the step, its codecs kept as calls.
      results: those to look at -> the shape of the arrays they belong to, and for scales their order.

    Returns:
      Passes; those of one shape share no input but constants. Results that cannot be had by one are in none.
    """
    walks: dict[int, _Walk] = {}
    for k, (shape, order) in results.items():
        atom = graph.outputs[k]
        walk = _Walk(graph, shape)
        try:
            walk.follow(atom, order)
        except _NotByPassError:
            continue
        if walk.equations:  # else it is an input handed on, or a constant
            walks[k] = walk
    constants = {v for walk in walks.values() for v in walk.inputs if graph.is_constant(v)}
    return [_joined(graph, {k: walks[k] for k in group}) for group in _groups(walks, constants)]


def _groups(walks: dict[int, _Walk], constants: set[Variable]) -> list[list[int]]:
    """Results of one shape that share an input, together; a constant may be read by many passes."""
    # like union-find, but groups are merged as results come: few results share anything
    groups: dict[int, list[int]] = {}
    of: dict[tuple[Variable, Any], int] = {}
    for k, walk in walks.items():
        touched = sorted({of[v, walk.shape] for v in walk.inputs - constants if (v, walk.shape) in of})
        groups[k] = sorted([k, *(j for g in touched for j in groups.pop(g))])
        for j in groups[k]:
            of.update({(v, walk.shape): k for v in walks[j].inputs - constants})
    return list(groups.values())


def _joined(graph: Graph, walks: dict[int, _Walk]) -> Pass:
    kinds: dict[Variable, Order | None] = {}
    equations: dict[int, Equation] = {}
    inputs: set[Variable] = set()
    scalars: set[Variable] = set()
    for walk in walks.values():
        kinds |= walk.kinds
        equations |= walk.equations
        inputs |= walk.inputs
        scalars |= walk.scalars
    first = next(iter(walks.values()))
    return Pass(
        first.shape,
        tuple(sorted(inputs)),
        tuple(sorted(scalars)),
        tuple(equations[v] for v in sorted(equations)),
        {k: graph.outputs[k] for k in walks},
        kinds,
        graph.types,
        frozenset(v for v in inputs if not graph.is_input(v)),
    )


def with_extra_results(graph: Graph, passes: list[Pass], roots: list[Any]) -> list[Pass]:
    """Passes that also write what is needed elsewhere and would have to be decoded there again.

    In a mapped axis an update is made from one device's share of the state, gathered, and added to the
    parameter: the pass over the share hands it on.

    Args:
      graph: the step.
      passes: of it.
      roots: what is computed besides.

    Returns:
      The same passes; those that need nothing of others come first.
    """
    decoded = _decoded(graph)
    made_in = {
        v: n
        for n, p in enumerate(passes)
        for eqn in p.equations
        if not known(eqn.of).handed and eqn.of.primitive.name != "convert_element_type"
        for v in eqn.outputs
    }
    near = _Nearest(graph, made_in, decoded)
    atoms = [variables((*p.inputs, *p.scalars)) for p in passes]
    wanted: dict[int, list[Variable]] = {}
    for v in sorted(near.of([*variables(roots), *itertools.chain(*atoms)]) & decoded):
        wanted.setdefault(made_in[v], []).append(v)
    # a pass that waits for a decoded value of another must run after it, and gets it as an input
    first, then = [], []
    for n, p in enumerate(passes):
        if any(near.is_decoded(v) for v in atoms[n]):
            then.append(dataclasses.replace(p, repeats=True))
        else:
            # numbered below zero: these are no results of the step
            own = {-1 - v: v for v in wanted.get(n, ()) if v not in p.results.values()}
            results, repeats = {**p.results, **own}, any(v in near for v in atoms[n])
            first.append(dataclasses.replace(p, results=results, repeats=repeats))
    return first + then


def _decoded(graph: Graph) -> set[Variable]:
    """All that depends on what a codec decodes."""
    found: set[Variable] = set()
    for eqn in graph.equations:
        codec = codec_of(eqn.of)
        if (codec is not None and codec.kind == "decode") or any(a in found for a in variables(eqn.inputs)):
            found.update(eqn.outputs)
    return found


class _Nearest:
    """The nearest variables of passes that others depend on.

    Norms depend on all passes, and much on norms: sets of what each depends on would take the square of the
    number of leaves. Here a set is a tree of what its equation's inputs have.
    """

    def __init__(self, graph: Graph, made_in: Container[Variable], decoded: Container[Variable]):
        self._made_in = made_in
        self._from: dict[Variable, tuple[Variable, ...]] = {}  # what is no pass's -> what it is made of
        self._decoded: set[Variable] = set()  # depend on something of a pass that was decoded
        for eqn in graph.equations:
            found = tuple(v for v in dict.fromkeys(variables(eqn.inputs)) if v in self)
            depends = any(map(self.is_decoded, found))
            for v in eqn.outputs:
                mine = v in made_in
                if (mine and v in decoded) or (depends and not mine):
                    self._decoded.add(v)
                if found and not mine:
                    self._from[v] = found
                    found = (v,)  # the others of an equation have what its first has

    def __contains__(self, v: Variable) -> bool:
        """Does it depend on a pass?"""
        return v in self._from or v in self._made_in

    def is_decoded(self, v: Variable) -> bool:
        """Is one of the nearest decoded?"""
        return v in self._decoded

    def of(self, wanted: Iterable[Variable]) -> set[Variable]:
        """The nearest of many."""
        pending, seen = list(wanted), set()
        while pending:
            v = pending.pop()
            if v not in seen:
                seen.add(v)
                pending.extend(self._from.get(v, ()))
        return {v for v in seen if v in self._made_in}


def results_of(
    params: Sequence[Any], state: Any, first: int
) -> dict[int, tuple[tuple[int, ...], Order | None]]:
    """Results of a step to look at: new parameters, numbered from 0, and a new state, from `first`."""
    found: dict[int, tuple[tuple[int, ...], Order | None]] = {
        i: (tuple(jnp.shape(p)), None) for i, p in enumerate(params)
    }
    for node in jax.tree.leaves(state, is_leaf=is_encoded):
        leaves = jax.tree.leaves(node)
        shape = tuple(jnp.shape(leaves[0])) if leaves else ()
        orders: list[Order | None] = [None] if len(leaves) == 1 else [None, node.order]
        for order in orders:
            found[first] = (shape, order)
            first += 1
    return {k: v for k, v in found.items() if v[0]}


def keep(equation: Any) -> bool:
    """Does a call stay: of a codec, of what nobody takes apart, or of what has a derivative of its own?"""
    is_whole = isinstance(meaning_of(equation), CodecCall | Opaque)
    return is_whole or equation.primitive.name.startswith("custom_")
