"""Which leaves of a state are never negative, found without knowing the rule."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._axes import reduction_axes
from .._types import Params, Rule, State
from ..tracing.primitives import known
from ..tracing.propagate import Lattice, has_inside, propagated
from ..tracing.update import traced_update

# fields that subtract, so that tracing cannot tell: yogi's nu, running maxima with resets
_NEVER_NEGATIVE = frozenset({"nu", "nu_max", "sum_of_squares", "exp_avg_sq"})
# where one of these names means something else: means of updates, estimates of a diagonal that has a sign
_SIGNED = frozenset({("ScaleBySM3State", "nu"), ("SophiaState", "nu")})


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
    leaves = [jax.tree.flatten(t) for t in (params, state)]
    kinds = tuple((tuple((x.shape, x.dtype) for x in flat), treedef) for flat, treedef in leaves)
    try:
        return list(_once(rule, kinds, reduction_axes()))
    except TypeError:  # something in a tree has no hash
        return _never_negative(rule, params, state)


@functools.lru_cache(maxsize=16)
def _once(rule: Rule, kinds: tuple[Any, ...], axes: Any) -> tuple[bool | None, ...]:
    """Wrappers ask again and again for the same shapes."""
    del axes  # a rule that adds up over an axis can be traced inside it only
    params, state = (t.unflatten([jax.ShapeDtypeStruct(*kind) for kind in flat]) for flat, t in kinds)
    return tuple(_never_negative(rule, params, state))


def _never_negative(rule: Rule, params: Params, state: State) -> list[bool | None]:
    named = [_is_named(state, path) for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    traced = _traced(rule, params, state)
    return [name or found for name, found in zip(named, traced, strict=True)]


def _is_named(state: State, path: tuple[Any, ...]) -> bool:
    """Does the innermost field on a path have a name that says it is never negative?"""
    name, holder = "", ""
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey) and _has_fields(state):
            name, holder = key.name, type(state).__name__
            state = getattr(state, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey | jax.tree_util.DictKey):
            state = state[key.idx if isinstance(key, jax.tree_util.SequenceKey) else key.key]
        else:
            break
    return name in _NEVER_NEGATIVE and (holder, name) not in _SIGNED


def _has_fields(state: State) -> bool:
    """Is it a state of a rule, and not a variable around an array, as Flax has them?"""
    return hasattr(state, "_fields") or dataclasses.is_dataclass(state)


class _Since(NamedTuple):
    """When a value is never negative: always, or if one of these leaves of the state was not before."""

    always: bool = False
    leaves: frozenset[int] = frozenset()


_ALWAYS_SO, _NOT_KNOWN = _Since(True), _Since()


def _all(signs: Iterable[_Since]) -> _Since:
    """When all of them are."""
    found = [s for s in signs if not s.always]
    return _Since(False, frozenset.intersection(*(s.leaves for s in found))) if found else _ALWAYS_SO


def _any(signs: Iterable[_Since]) -> _Since:
    """When one of them is."""
    found = list(signs)
    if any(s.always for s in found):
        return _ALWAYS_SO
    return _Since(False, frozenset().union(*(s.leaves for s in found)))


def _traced(rule: Rule, params: Params, state: State) -> list[bool | None]:
    """From the equations of `init` and `update`."""
    leaves = jax.tree.leaves(state)
    try:
        traced = traced_update(rule.update, params, state, params)
    except Exception:  # it takes arguments that only the step has
        return [None] * len(leaves)
    start = jax.make_jaxpr(rule.init)(params)  # a field may begin as the parameters
    begins = propagated(start, [_NOT_KNOWN] * len(start.jaxpr.invars), _Signs())
    count = len(jax.tree.leaves(params))
    before = [_Since(not x.ndim, frozenset((k,))) for k, x in enumerate(leaves)]
    known_before = [_NOT_KNOWN] * count + before + [_NOT_KNOWN] * count
    after = propagated(traced.closed, known_before, _Signs())[traced.changes :]
    return [begins[k].always and (after[k].always or k in after[k].leaves) for k in range(len(leaves))]


class _Signs(Lattice[_Since]):
    """The lattice of what is never negative: always, since some leaves are not, or not known."""

    def of_constant(self, value: Any) -> _Since:
        return _ALWAYS_SO if _is_non_negative(value) else _NOT_KNOWN

    def of_equation(
        self, equation: Any, operands: list[_Since], around: Sequence[Any]
    ) -> list[_Since] | None:
        del around
        if has_inside(equation):
            return None
        name, primitive, count = equation.primitive.name, known(equation), len(equation.outvars)
        if primitive.square or (name == "mul" and equation.invars[0] is equation.invars[1]):
            return [_ALWAYS_SO] * count
        if name == "integer_pow":
            return [_ALWAYS_SO if equation.params["y"] % 2 == 0 else operands[0]]
        if name in ("max", "pmax"):
            return [_any(operands)]
        if name == "select_n":
            return [_all(operands[1:])]
        return [_all(operands) if primitive.sign else _NOT_KNOWN] * count

    def refined(
        self, equation: Any, operands: list[_Since], results: list[_Since], fixed: list[bool]
    ) -> list[_Since]:
        """Scalars made of scalars are taken to be non-negative: decay rates, corrections.

        Those made of arrays, like a sum of gradients, may be anything; so may what is made of them.
        """
        if equation.primitive.name == "neg" or all(getattr(v.aval, "ndim", 1) for v in equation.outvars):
            return results
        given = zip(equation.invars, operands, fixed, strict=True)
        told = _all(sign for a, sign, is_fixed in given if not is_fixed or a.aval.ndim)
        return [
            sign if getattr(v.aval, "ndim", 1) else _any((sign, told))
            for v, sign in zip(equation.outvars, results, strict=True)
        ]

    def joined(self, one: _Since, other: _Since) -> _Since:
        return _all((one, other))

    def decided(self, choice: _Since, results: list[_Since]) -> list[_Since]:
        del choice
        return results


def _is_non_negative(x: Any) -> bool:
    if isinstance(x, jax.core.Tracer):  # a hyper-parameter that is traced
        return x.ndim == 0
    if jnp.issubdtype(jnp.result_type(x), jax.dtypes.extended):  # a random key
        return False
    x = np.asarray(x)
    return bool(np.issubdtype(x.dtype, np.number) and np.all(x >= 0)) or x.dtype == bool
