"""The parameters to evaluate and to keep, of rules that average them."""

from typing import Any

import jax

from ._encoded import is_encoded
from ._errors import message
from ._types import Params, State
from .checkpoint import unpadded

__all__ = ["evaluation_params", "has_averages"]


def evaluation_params(state: State, params: Params) -> Params:
    """The averaged parameters that a rule keeps.

    `ema_of_params`, `lookahead`, `schedule_free` and `asgd` have some, anywhere in a state, also inside
    `zero`, `offload` and `stored`. Of several the outermost counts.

    Args:
      state: what a rule's `init` or `update` has returned; not inside a mapped axis.
      params: those of the loop.

    Returns:
      A tree like the parameters, of float32 arrays (float64 for float64).

    Raises:
      ValueError: the state has no averages.

    >>> rule, params = jl.zero(jl.lookahead(jl.sgd(0.1)), jax.make_mesh((1,), ("data",)), "data"), jnp.ones(8)
    >>> jl.evaluation_params(rule.init(params), params).tolist() == params.tolist()
    True
    """
    found = _averages(unpadded(state))
    if found is None:
        do = "Wrap the rule in ema_of_params, lookahead or schedule_free, or take asgd"
        raise ValueError(message("evaluation_params", "the state has no averages", do=do))
    return _decoded(found).evaluation_params(params)


def has_averages(state: State) -> bool:
    """Does a rule keep averaged parameters?"""
    return _averages(state) is not None


def _averages(state: State) -> Any:
    """The outermost part of a state that has averages, or None."""
    pending: list[Any] = [state]
    while pending:
        node = pending.pop(0)
        if hasattr(node, "evaluation_params"):
            return node
        children = jax.tree.leaves(node, is_leaf=lambda x, node=node: x is not node)
        pending += [child for child in children if child is not node]
    return None


def _decoded(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.format.decode(x) if is_encoded(x) else x, tree, is_leaf=is_encoded)
