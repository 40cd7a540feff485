"""The parameters to evaluate and to keep, of rules that average them."""

from typing import Any

import jax

from ._encoded import is_encoded
from ._errors import message
from ._numerics import accumulation_dtype
from ._paths import leaf_paths
from ._types import Params, State
from .checkpoint import unpadded

__all__ = ["evaluation_params", "has_averages"]


def evaluation_params(state: State, params: Params) -> Params:
    """The averaged parameters that a rule keeps.

    `ema_of_params`, `lookahead`, `schedule_free` and `asgd` have some, anywhere in a state, also inside
    `partition`, `zero`, `offload` and `stored`. Of several for one parameter the outermost counts;
    parameters without an average are as they are.

    Args:
      state: what a rule's `init` or `update` has returned; not inside a mapped axis.
      params: those of the loop.

    Returns:
      A tree like the parameters, of float32 arrays (float64 for float64), each where its parameter is.

    Raises:
      ValueError: the state has no averages, or they are of other parameters.

    >>> rule, params = jl.zero(jl.lookahead(jl.sgd(0.1)), jax.make_mesh((1,), ("data",)), "data"), jnp.ones(8)
    >>> jl.evaluation_params(rule.init(params), params).tolist() == params.tolist()
    True
    """
    who, found = "evaluation_params", _averages(unpadded(state))
    if not found:
        do = "Wrap the rule in ema_of_params, lookahead or schedule_free, or take asgd"
        raise ValueError(message(who, "the state has no averages", do=do))
    keyed, treedef = jax.tree_util.tree_flatten_with_path(params)
    made: dict[Any, Any] = {}
    for node in found:
        kept = node.averaged_field()
        for path, x in jax.tree_util.tree_flatten_with_path(kept, is_leaf=is_encoded)[0]:
            made.setdefault(path, (node, x))
    others = made.keys() - {path for path, _ in keyed}
    if others:
        wrong = f"the averages are of other parameters, {len(others)} are not in params"
        raise ValueError(
            message(who, wrong, allowed=f"params have {', '.join(leaf_paths(params)) or 'none'}")
        )
    return treedef.unflatten([_average(made.get(path), p) for path, p in keyed])


def has_averages(state: State) -> bool:
    """Does a rule keep averaged parameters?"""
    return bool(_averages(state))


def _average(found: Any, p: Any) -> Any:
    """The average of one parameter, in its layout."""
    wide = p.astype(accumulation_dtype(p.dtype))
    if found is None:
        return wide
    node, x = found
    x = x.format.decode(x) if is_encoded(x) else x
    is_placed = all(isinstance(y, jax.Array) and not isinstance(y, jax.core.Tracer) for y in (x, p))
    x = jax.device_put(x, p.sharding) if is_placed else x
    return node.average(x.astype(wide.dtype), wide)


def _averages(state: State) -> list[Any]:
    """The parts of a state that have averages, the outermost first."""
    pending, found = [state], []
    while pending:
        node = pending.pop(0)
        if hasattr(node, "averaged_field"):
            found.append(node)
        children = jax.tree.leaves(node, is_leaf=lambda x, node=node: x is not node)
        pending += [child for child in children if child is not node]
    return found
