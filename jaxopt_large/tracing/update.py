"""One step of a rule, traced: gradients, state and parameters in, changes and new state out."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from .._types import Params, State, Updates
from .graph import Graph, has_effects


@dataclasses.dataclass(frozen=True, eq=False)
class TracedUpdate:
    """A traced step.

    Inputs are numbered leaf by leaf: gradients, state, parameters. So are results: changes (or new
    parameters), then the new state.

    Attributes:
      closed: its jaxpr.
      given: the trees of its inputs.
      made: the trees of its two results.
      keep: calls that stay equations in its graph.
    """

    closed: Any
    given: tuple[Any, Any, Any]
    made: tuple[Any, Any]
    keep: Callable[[Any], bool]

    @property
    def gradients(self) -> int:
        """How many leaves the gradients have."""
        return self.given[0].num_leaves

    @property
    def state(self) -> int:
        """How many leaves the state has."""
        return self.given[1].num_leaves

    @property
    def changes(self) -> int:
        """How many leaves the changes have."""
        return self.made[0].num_leaves

    @property
    def equations(self) -> int:
        """How many there are, calls not inlined."""
        return len(self.closed.jaxpr.eqns)

    def does_as_it_returns(self, like: Any) -> bool:
        """Does it nothing besides, and are its results a tree like `like` and one like the state?"""
        wanted = jax.tree.structure(like), self.given[1]
        return not has_effects(self.closed) and self.made == wanted

    @functools.cached_property
    def graph(self) -> Graph:
        """Its equations, all calls inlined but those to keep."""
        return Graph(self.closed, self.keep)

    def results(self, leaves: Any) -> tuple[Any, Any]:
        """Results by number as the two trees."""
        n = self.changes
        return self.made[0].unflatten(leaves[:n]), self.made[1].unflatten(leaves[n:])


def traced_update(
    function: Callable[..., tuple[Any, State]],
    updates: Updates,
    state: State,
    params: Params | None,
    extra: Mapping[str, Any] | None = None,
    *,
    keep: Callable[[Any], bool] = lambda equation: False,
) -> TracedUpdate:
    """Traces (gradients, state, parameters) -> (changes, new state).

    Args:
      function: `rule.update`, or what is called like it.
      updates: arrays or shapes.
      state: likewise.
      params: likewise, or None.
      extra: what the function takes besides; its arrays are constants of the trace.
      keep: calls that stay equations in the graph.
    """
    made: list[Any] = []

    # a function of its own: what an update does may depend on what surrounds it, a cached trace does not
    def step(updates: Updates, state: State, params: Params | None) -> Any:
        results = function(updates, state, params, **(extra or {}))
        made.append(tuple(jax.tree.structure(x) for x in results))
        return results

    args = (updates, state, params)
    closed = jax.make_jaxpr(step)(*args)
    return TracedUpdate(closed, tuple(jax.tree.structure(x) for x in args), made[-1], keep)
