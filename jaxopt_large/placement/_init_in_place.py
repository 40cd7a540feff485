"""States that begin in their places: results of one kind are made by one compiled function.

What `init` does for a leaf is small, and the same for hundreds of leaves: compiled for all of them at once
it takes a compiler seconds, and minutes for thousands.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .._compat import bind
from .._types import Params, State
from ..tracing.graph import Constant, Equation, Graph, has_effects, variables
from ._layout import without_aliases

_FEWEST = 4  # pieces of a kind for which a function of their own is worth it
_LARGEST = 64  # equations of a piece

Compiled = Callable[[Callable[..., list[Any]], list[int]], Callable[..., list[Any]]]


def traced_init(init: Callable[[Params], State], params: Params) -> tuple[Any, State]:
    """What `init` does, as a closed jaxpr in which no result is a parameter, and the shapes of its results.

    Args:
      init: a rule's.
      params: a tree of shapes and dtypes.
    """
    leaves, treedef = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]

    # a function of its own: what `init` does may depend on what surrounds it, a cached trace does not
    def own(params: Params) -> State:
        return without_aliases(init(params), params)

    return jax.make_jaxpr(own, return_shape=True)(treedef.unflatten(shapes))


def init_in_place(
    closed: Any, arrays: Sequence[Any], like: Sequence[Hashable], compiled: Compiled
) -> list[Any]:
    """The results of a traced function.

    Args:
      closed: the function.
      arrays: its arguments.
      like: for each result, what else decides how it is made, its place say.
      compiled: compiles a function that makes some of the results, given their numbers.
    """
    results: list[Any] = [None] * len(closed.jaxpr.outvars)
    graph = Graph(closed, keep=lambda equation: True)
    for n, x in enumerate(arrays):
        graph.give(n, x)
    kinds: dict[Hashable, list[_Piece]] = defaultdict(list)
    if not has_effects(closed):
        for piece in _pieces(graph):
            kinds[piece.kind(graph, like)].append(piece)
    for pieces in kinds.values():
        if len(pieces) >= _FEWEST:
            _make(graph, pieces, compiled, results)
    rest = [n for n, x in enumerate(results) if x is None]
    if rest:
        needed = graph.equations if has_effects(closed) else graph.needed(graph.outputs[n] for n in rest)
        _make(graph, [_Piece(rest, needed)], compiled, results)
    return results


class _Piece(NamedTuple):
    """Some results, and the equations that it takes to make them."""

    results: list[int]
    equations: list[Equation]

    def numbers(self) -> Iterator[Constant]:
        """Its integers: they tell leaves apart, and are no reason for a function of their own."""
        return (a for e in self.equations for a in e.inputs if _is_number(a))

    def kind(self, graph: Graph, like: Sequence[Hashable]) -> Hashable:
        names = _Names()
        steps = []
        for equation in self.equations:
            inputs = tuple(names.of(graph, a) for a in equation.inputs)
            steps.append((_of_primitive(equation.of), inputs))
            for v in equation.outputs:
                names.of(graph, v)
        return tuple(steps), tuple((names.of(graph, graph.outputs[n]), like[n]) for n in self.results)


class _Names:
    """Variables by their order, and what is known of each."""

    def __init__(self) -> None:
        self._found: dict[Any, int] = {}

    def of(self, graph: Graph, atom: Any) -> Hashable:
        if isinstance(atom, Constant):
            kind = str(jax.typeof(atom.value))
            return kind if _is_number(atom) else (kind, np.asarray(atom.value).tobytes())
        kind = graph.types[atom]
        number = self._found.setdefault(atom, len(self._found))
        return number, kind.shape, kind.dtype, kind.weak_type


def _is_number(atom: Any) -> bool:
    return isinstance(atom, Constant) and jax.typeof(atom.value).dtype.kind in "iu"


def _of_primitive(equation: Any) -> Hashable:
    """A primitive and its parameters; those that have no value are told apart by what they are."""
    params = []
    for name, value in sorted(equation.params.items()):
        try:
            hash(value)
            params.append((name, value))
        except TypeError:
            params.append((name, id(value)))
    return equation.primitive.name, tuple(params)


def _pieces(graph: Graph) -> list[_Piece]:
    """Results that one equation gives, where they share none with others and take few, as a leaf's do."""
    by_equation: dict[int, list[int]] = defaultdict(list)
    for n, out in enumerate(graph.outputs):
        if not isinstance(out, Constant) and out in graph.made_by:
            by_equation[id(graph.made_by[out])].append(n)
    pieces, wanted = [], defaultdict(int)
    for results in by_equation.values():
        equations = graph.needed([graph.outputs[n] for n in results])
        for equation in equations:
            wanted[id(equation)] += 1
        if len(equations) <= _LARGEST:
            pieces.append(_Piece(results, equations))
    return [p for p in pieces if all(wanted[id(e)] == 1 for e in p.equations)]


def _make(graph: Graph, pieces: list[_Piece], compiled: Compiled, results: list[Any]) -> None:
    first = pieces[0]
    numbers = [[a.value for a in piece.numbers()] for piece in pieces]
    differ = {n for n, values in enumerate(zip(*numbers, strict=True)) if any(x != values[0] for x in values)}

    def run(*given: Any) -> list[Any]:
        taken = iter(given)
        values: dict[Any, Any] = {v: next(taken) for v in _inputs(graph, first)}
        constants = [next(taken) if n in differ else x for n, x in enumerate(numbers[0])]
        chosen = iter(constants)
        for equation in first.equations:
            operands = [
                values[a] if not isinstance(a, Constant) else next(chosen) if _is_number(a) else a.value
                for a in equation.inputs
            ]
            made = bind(equation.of, operands, elsewhere=True)  # the mesh in use may have been another one
            values.update(zip(equation.outputs, made, strict=True))
        outputs = [graph.outputs[n] for n in first.results]
        return [a.value if isinstance(a, Constant) else values[a] for a in outputs]

    make = compiled(run, first.results)
    for piece, own in zip(pieces, numbers, strict=True):
        arrays = graph.computed(_inputs(graph, piece))
        made = make(*arrays, *(own[n] for n in sorted(differ)))
        for n, x in zip(piece.results, made, strict=True):
            results[n] = x


def _inputs(graph: Graph, piece: _Piece) -> list[Any]:
    """What it is given, in the order in which its equations read it."""
    made = {v for e in piece.equations for v in e.outputs}
    read = [a for e in piece.equations for a in e.inputs] + [graph.outputs[n] for n in piece.results]
    return list(dict.fromkeys(v for v in variables(read) if v not in made))
