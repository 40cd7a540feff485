"""A traced step as passes, run one after another, and what no pass makes as it was traced."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..tracing.update import TracedUpdate
from .integer_views import is_narrow
from .loop import Hold
from .pass_call import PassCall
from .passes import Pass
from .split import results_of, split, with_extra_results

_MOST_TOGETHER = 16  # leaves in one loop, which asks for each of them in every round
_MOST_SHARED = 1000  # functions kept

_NOT_YET: Any = object()
_outside_jit: dict[Any, Callable[..., Any]] = {}  # what passes share from one call to the next


class SplitUpdate:
    """The passes of a traced step.

    Args:
      traced: the step.
      changes: the arrays that it changes, or their shapes.
      state: its state, or the shapes of it.
      in_place_of: the number of the input in whose place the first of the changes comes: parameters that are
        given up, or gradients.
      copied: are those inputs needed after the step?
    """

    def __init__(
        self, traced: TracedUpdate, changes: Sequence[Any], state: Any, in_place_of: int, *, copied: bool
    ):
        self._traced, self._changes, self._state = traced, changes, state
        self._in_place_of, self._copied = in_place_of, copied
        self.graph = traced.graph

    @functools.cached_property
    def alone(self) -> list[Pass]:
        """Passes that make results of the step and nothing else."""
        return split(self.graph, results_of(self._changes, self._state, self._traced.changes))

    @functools.cached_property
    def passes(self) -> list[Pass]:
        """Those that need nothing of others come first."""
        mine = {k for p in self.alone for k in p.results}
        rest = [x for k, x in enumerate(self.graph.outputs) if k not in mine]
        return with_extra_results(self.graph, self.alone, rest)

    def _input_of(self, k: int) -> int:
        """The input whose place result `k` takes."""
        first = self._traced.changes
        return self._in_place_of + k if k < first else self._traced.gradients + k - first

    def holds(self, pass_: Pass) -> tuple[Hold, ...]:
        """For each result of a pass, what its array holds until it is written."""
        numbers = {v: n for n, v in enumerate(pass_.inputs)}
        return tuple(self._hold(pass_, numbers, k, v) for k, v in pass_.results.items())

    def _hold(self, pass_: Pass, numbers: dict[Any, int], k: int, v: Any) -> Hold:
        if k < 0:
            return Hold()
        kind, place = pass_.types[v], self.graph.inputs[self._input_of(k)]
        number, was = numbers.get(place), self.graph.types[place]
        is_change = k < self._traced.changes
        # parameters and state are given up by who calls, if they like: JAX sees that by what is donated.
        # Gradients are not ours: their buffers may be needed after the step, so that the loop copies them
        if number is not None and (was.shape, was.dtype) == (kind.shape, kind.dtype):
            return Hold((number,), is_change and self._copied)
        if is_change and self._copied and kind.dtype.itemsize == 4:
            # a gradient and a parameter of 16 bits are not needed any more when the change is written
            first = self._traced.gradients + self._traced.state
            parameter = self.graph.inputs[first + k] if first + k < len(self.graph.inputs) else None
            halves = [numbers.get(parameter), number]
            if all(n is not None and pass_.types[pass_.inputs[n]].dtype.itemsize == 2 for n in halves):
                return Hold((halves[0], halves[1]), True)  # type: ignore[arg-type]
        return Hold()

    def groups(self) -> list[list[Pass]]:
        """Passes, those together that one function can run on all their leaves at once.

        Alone stay those that wait for others, those that XLA fuses by itself, and those whose loop needs
        copies, which would be there at once for all leaves: of what the caller keeps, and of narrow floats.
        """
        groups: dict[Any, list[Pass]] = {}
        for n, p in enumerate(self.passes):
            narrow = any(is_narrow(p.types[v].dtype) for v in p.inputs)
            alone = p.precomputed or p.repeats or not p.has_blocks or narrow or self._copied
            key = n if alone else (p.key, self.holds(p))
            if len(groups.setdefault(key, [])) == _MOST_TOGETHER:
                groups[key, n] = groups.pop(key)
            groups.setdefault(key, []).append(p)
        return list(groups.values())

    def run(
        self, args: Any, call: Callable[[Pass, tuple[Hold, ...]], PassCall | None], context: Any = None
    ) -> Any:
        """What the step returns.

        Args:
          args: what the step is given.
          call: how the passes of a kind run; None for those that are left as they were traced.
          context: what else decides how.
        """
        leaves, graph = jax.tree.leaves(args), self.graph
        for k, x in enumerate(leaves):
            graph.give(k, x)
        traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
        shared: dict[Any, Any] = {} if traced else _outside_jit
        if len(_outside_jit) > _MOST_SHARED:
            _outside_jit.clear()
        results: dict[int, Any] = {}
        token = None
        # passes are run first and their results made known to the graph: what is computed after them, other
        # passes' scalars included, then takes from them instead of decoding once more
        for group in self.groups():
            first, holds = group[0], self.holds(group[0])
            # leaves with equal equations share one function, in the trace and in the program
            key = (first.key, holds, context, jax.sharding.get_abstract_mesh())
            run = shared.get(key, _NOT_YET)  # other threads may empty it
            if run is _NOT_YET:
                run = shared[key] = _shared(call(first, holds))
            if run is None:
                continue
            arrays = [graph.computed(p.inputs) for p in group]
            scalars = graph.side_by_side(zip(*(p.scalars for p in group), strict=True))
            made, token = run(arrays, scalars, token)
            for p, xs in zip(group, made, strict=True):
                for (k, v), x in zip(p.results.items(), xs, strict=True):
                    results[k] = x
                    graph.know(v, x)
        rest = [k for k in range(len(graph.outputs)) if k not in results]
        results |= zip(rest, graph.results(rest), strict=True)
        return self._traced.results([results[k] for k in range(len(graph.outputs))])


def _shared(call: PassCall | None) -> Callable[..., Any] | None:
    """A call as one function in the programs of all leaves it is for."""

    def leaf(arrays: Any, scalars: Any, token: Any) -> Any:
        return None if call is None else call(arrays, scalars, token)

    return None if call is None else jax.jit(leaf)
