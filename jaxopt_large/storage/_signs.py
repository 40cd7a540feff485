"""Which leaves of a state are never negative, found without knowing the rule."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Params, Rule, State

# fields that subtract, so that tracing cannot tell: yogi's nu, running maxima with resets
_NEVER_NEGATIVE = frozenset({"nu", "nu_max", "sum_of_squares", "exp_avg_sq"})
_SIGNED = frozenset({("ScaleBySM3State", "nu")})  # where one of these names means something else

_KEEP = {
    *("broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy"),
    *(
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "cumsum",
        "cummax",
        "slice",
        "dynamic_slice",
        "reduce_precision",
    ),
    *("concatenate", "gather", "pad", "rev", "sharding_constraint", "pvary", "pcast", "reshard", "psum"),
    *(
        "add",
        "add_any",
        "mul",
        "div",
        "min",
        "clamp",
        "sqrt",
        "cbrt",
        "optimization_barrier",
        "stop_gradient",
    ),
}
_ALWAYS = {"square", "abs", "exp", "exp2", "rsqrt", "logistic", "is_finite", "iota", "sort_key"}
_CALLS = ("jaxpr", "call_jaxpr")


def never_negative(rule: Rule, params: Params, state: State) -> list[bool | None]:
    """For each leaf of the state: is it always at 0 or above? None: nothing can tell.

    Some names of fields say so. For the rest the update is traced once: a result is non-negative if it is
    a sum, product, square, root or maximum of such things; scalars that are made of scalars (decay rates,
    corrections) are taken to be.

    Args:
      rule: any.
      params: shapes.
      state: what `rule.init` gives for them, as shapes.
    """
    named = [_is_named(state, path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    traced = _traced(rule, params, state)
    return [name or found for name, found in zip(named, traced, strict=True)]


def _is_named(state: State, path: tuple[Any, ...]) -> bool:
    """Does the innermost field on a path have a name that says it is never negative?"""
    name, holder = "", ""
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            name, holder = key.name, type(state).__name__
            state = getattr(state, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey | jax.tree_util.DictKey):
            state = state[key.idx if isinstance(key, jax.tree_util.SequenceKey) else key.key]
        else:
            break
    return name in _NEVER_NEGATIVE and (holder, name) not in _SIGNED


def _traced(rule: Rule, params: Params, state: State) -> list[bool | None]:
    leaves = jax.tree.leaves(state)
    try:
        closed = jax.make_jaxpr(lambda g, s, p: rule.update(g, s, p)[1])(params, state, params)
    except Exception:  # it takes arguments that only the step has
        return [None] * len(leaves)
    start = jax.make_jaxpr(rule.init)(params)  # a field may begin as the parameters
    begins = _outputs(start.jaxpr, start.consts, [False] * len(start.jaxpr.invars))
    count = len(jax.tree.leaves(params))
    ranks = [x.ndim for x in leaves]
    found: list[bool | None] = []
    for k in range(len(leaves)):
        known = [False] * count + [i == k or not ranks[i] for i in range(len(leaves))] + [False] * count
        found.append(begins[k] and _outputs(closed.jaxpr, closed.consts, known)[k])
    return found


def _outputs(jaxpr: Any, constants: Sequence[Any], known: Sequence[bool]) -> list[bool]:
    signs: dict[Any, bool] = dict(zip(jaxpr.invars, known, strict=True))
    signs |= {v: _is_non_negative(x) for v, x in zip(jaxpr.constvars, constants, strict=True)}
    given = set(jaxpr.constvars)

    def read(atom: Any) -> bool:
        return _is_non_negative(atom.val) if hasattr(atom, "val") else signs[atom]

    for eqn in jaxpr.eqns:
        made = _equation(eqn, [read(a) for a in eqn.invars])
        # a scalar made of arrays, like a sum of gradients, may be anything; so may what is made of it
        unknown = eqn.primitive.name == "neg" or any(
            not hasattr(a, "val") and not signs[a] and (a.aval.ndim or a not in given) for a in eqn.invars
        )
        for v, sign in zip(eqn.outvars, made, strict=True):
            signs[v] = sign or not (unknown or getattr(v.aval, "ndim", 1))
    return [read(v) for v in jaxpr.outvars]


def _equation(eqn: Any, operands: list[bool]) -> list[bool]:
    name, count = eqn.primitive.name, len(eqn.outvars)
    inner = next((eqn.params[k] for k in _CALLS if hasattr(eqn.params.get(k), "consts")), None)
    if inner is not None and len(inner.jaxpr.invars) == len(operands):
        return _outputs(inner.jaxpr, inner.consts, operands)
    if name == "cond":
        branches = [_outputs(b.jaxpr, b.consts, operands[1:]) for b in eqn.params["branches"]]
        return [all(signs) for signs in zip(*branches, strict=True)]
    if name in _ALWAYS or (name == "mul" and eqn.invars[0] is eqn.invars[1]):
        return [True] * count
    if name == "integer_pow":
        return [eqn.params["y"] % 2 == 0 or operands[0]]
    if name in ("max", "pmax"):
        return [any(operands)]
    if name == "select_n":
        return [all(operands[1:])]
    return [name in _KEEP and all(operands)] * count


def _is_non_negative(x: Any) -> bool:
    if isinstance(x, jax.core.Tracer):  # a hyper-parameter that is traced
        return x.ndim == 0
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):  # a random key
        return False
    x = np.asarray(x)
    return bool(np.issubdtype(x.dtype, np.number) and np.all(x >= 0)) or x.dtype == bool
