"""A step as users write it, traced and taken apart."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.extend.core import jaxpr_as_fun

from .._axes import surrounded_by
from .._encoded import is_encoded
from .._states import explained
from .._types import AnyRule, Params, State, Updates
from ..passes.integer_views import is_narrow
from ..passes.passes import Pass
from ..passes.split import keep, results_of, split, with_extra_results
from ..tracing.graph import Graph, has_effects
from ._dispatch import run


def step_of(rule: AnyRule, extra: dict[str, Any]) -> Callable[..., tuple[Params, State]]:
    """(gradients, state, parameters) -> new parameters and state, as users write it."""
    rule = optax.with_extra_args_support(rule)

    def step(grads: Updates, state: State, params: Params) -> tuple[Params, State]:
        with explained("apply", rule.init, state, grads, params):
            updates, new = rule.update(grads, state, params, **extra)
        with jax.numpy_dtype_promotion("standard"):
            return optax.apply_updates(params, updates), new

    return step


_outside_jit: dict[Any, Callable[..., Any]] = {}  # what passes share from one call to the next
_MOST_SHARED = 1000  # functions kept
_MOST_TOGETHER = 16  # leaves in one loop, which asks for each of them in every round
_SHORT = 12  # equations per parameter: more than rules that share a function per shape have (5), fewer than
# those of optax that do not (Lion 13, Adam 18), which passes make shorter


class Step:
    """A traced step and its passes.

    Args:
      closed: what `jax.make_jaxpr` makes of it.
      args: gradients, state and parameters, or their shapes.
      treedef: of what it returns.
    """

    def __init__(self, closed: Any, args: Any, treedef: Any):
        self._closed, self._args, self.treedef = closed, args, treedef
        grads, _, params = args
        self.first = len(jax.tree.leaves(grads))  # the number of the state's first input
        self.count = len(jax.tree.leaves(params))

    @classmethod
    def taken(cls, step: Callable[..., Any], args: Any) -> "Step | None":
        """None: the step does more than its results, or they have another structure."""
        made = []

        def traced(*args: Any) -> Any:
            with surrounded_by("apply"):
                out = step(*args)
            made.append(jax.tree.structure(out))
            return out

        closed = jax.make_jaxpr(traced)(*args)
        _, state, params = args
        if has_effects(closed) or made[-1] != jax.tree.structure((params, state)):
            return None
        return cls(closed, args, made[-1])

    @property
    def is_short(self) -> bool:
        """Is there nothing for passes to gain: no blocks, and few equations?"""
        _, state, _ = self._args
        in_blocks = any(is_encoded(x) and x.order for x in jax.tree.leaves(state, is_leaf=is_encoded))
        return not in_blocks and len(self._closed.jaxpr.eqns) <= _SHORT * self.count

    @functools.cached_property
    def graph(self) -> Graph:
        return Graph(self._closed, keep)

    @functools.cached_property
    def passes(self) -> list[Pass]:
        _, state, params = self._args
        graph = self.graph
        passes = split(graph, results_of(jax.tree.leaves(params), state, self.count))
        mine = {k for p in passes for k in p.results}
        return with_extra_results(graph, passes, [x for k, x in enumerate(graph.outputs) if k not in mine])

    def input_of(self, k: int) -> int:
        """The input whose place result `k` takes."""
        states = len(self.graph.outputs) - self.count
        return self.first + states + k if k < self.count else self.first + k - self.count

    def aliased(self, pass_: Pass) -> tuple[int | None, ...]:
        """For each result of a pass, the number of the pass's input whose place it takes."""
        numbers = {v: n for n, v in enumerate(pass_.inputs)}
        types = self.graph.types
        found: list[int | None] = []
        for k, v in pass_.results.items():
            place = None if k < 0 else self.graph.inputs[self.input_of(k)]
            fits = place is not None and (types[place].shape, types[place].dtype) == (
                types[v].shape,
                types[v].dtype,
            )
            found.append(numbers.get(place) if fits else None)
        return tuple(found)

    def _groups(self) -> list[list[Pass]]:
        """Passes, those together that one function can run on all their leaves at once.

        Alone stay those that wait for others, those that XLA fuses by itself, and those of narrow floats:
        on CPU a loop needs copies of them, and several leaves' would be there at once.
        """
        groups: dict[Any, list[Pass]] = {}
        for n, p in enumerate(self.passes):
            narrow = any(is_narrow(p.types[v].dtype) for v in p.inputs)
            alone = p.precomputed or p.repeats or not p.has_blocks or narrow
            key = n if alone else (p.key, self.aliased(p))
            if len(groups.setdefault(key, [])) == _MOST_TOGETHER:
                groups[key, n] = groups.pop(key)
            groups.setdefault(key, []).append(p)
        return list(groups.values())

    def run(self, args: Any, kernels: str) -> tuple[Params, State]:
        leaves = jax.tree.leaves(args)
        traced = any(isinstance(x, jax.core.Tracer) for x in leaves)
        if traced and self.is_short:
            return self.treedef.unflatten(jaxpr_as_fun(self._closed)(*leaves))
        for k, x in enumerate(leaves):
            self.graph.give(k, x)
        results: dict[int, Any] = {}
        shared: dict[Any, Callable[..., Any]] = {} if traced else _outside_jit
        token = None
        if len(_outside_jit) > _MOST_SHARED:
            _outside_jit.clear()
        for group in self._groups():
            first = group[0]
            aliased = self.aliased(first)
            key = (first.key, aliased, kernels, jax.sharding.get_abstract_mesh())
            if key not in shared:
                shared[key] = jax.jit(run(first, aliased, kernels))
            arrays = [self.graph.computed(p.inputs) for p in group]
            scalars = self.graph.side_by_side(zip(*(p.scalars for p in group), strict=True))
            made, token = shared[key](arrays, scalars, token)
            for p, xs in zip(group, made, strict=True):
                results |= zip(p.results, xs, strict=True)
                for k, x in zip(p.results, xs, strict=True):
                    self.graph.know(p.results[k], x)
        numbers = range(len(self.graph.outputs))
        rest = [k for k in numbers if k not in results]
        results |= zip(rest, self.graph.results(rest), strict=True)
        return self.treedef.unflatten([results[k] for k in numbers])
