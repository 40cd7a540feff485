"""Finds rules that would reduce over one device's share of a leaf as if it were the leaf.

Inside a mapped axis a rule sees shares. What works element by element is right there; a norm, a mean
or a matrix product of a share is not that of the leaf, and nothing would say so. The rule is therefore
traced once, and values that depend on shares are followed through its equations.
"""

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from .._compat import like_varying
from .._errors import message
from .._parts import ELEMENTWISE
from .._types import Params, Rule, State, Updates
from ..passes.codecs import codec_of
from ._same_work import difference_in_work, transform_of

# what ours does right that optax's cannot know of
_OURS = {
    "clip_by_global_norm": "jl.clip_by_global_norm",
    "apply_if_finite": "jl.skip_nonfinite",
    "MultiSteps": "jl.accumulate",
}

_WHOLE_AFTERWARDS = ("psum", "pmax", "pmin", "all_gather")
_RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator")


class ReductionError(ValueError):
    """A rule would take one device's share of a leaf for the leaf."""


class _Kind(enum.IntEnum):
    """What a value is, seen from one device."""

    UNIFORM = 0  # the same for every share
    SHARE = 1  # element by element that of the whole leaf
    PARTIAL = 2  # of one share only: wrong, unless it is still summed over the axis


class _Value(NamedTuple):
    kind: _Kind
    blame: str = ""  # who made it partial


_UNIFORM = _Value(_Kind.UNIFORM)


def refuse_reductions(
    rule: Rule,
    updates: Updates,
    state: State,
    params: Params,
    extra: dict[str, Any],
    axis_name: str,
    whole: tuple[Updates, Params],
) -> None:
    """Traces a rule on shares and raises if a result depends on more than its own elements.

    Args:
      rule: its `init` and `update` are traced.
      updates: shares of the gradient; `params` are those of the parameters, or None.
      state: of the shares.
      extra: what `update` takes besides.
      axis_name: over which leaves are divided.
      whole: the whole gradient and the whole parameters, as shapes of the same dtypes: what is done must
        not depend on shapes.

    Raises:
      ReductionError: names who reduces over a share, and what to use instead.
    """

    def step(updates: Updates, state: State, params: Params) -> Any:
        return rule.update(updates, state, params, **extra)

    gradients, values = whole
    own = updates if params is None else params
    started = jax.make_jaxpr(lambda p: rule.init(p))(own)
    _refuse_partial(started, [_Value(_Kind.SHARE)] * len(started.jaxpr.invars), axis_name)
    closed = jax.make_jaxpr(step)(updates, state, params)
    kinds = [_Value(_Kind.SHARE)] * len(closed.jaxpr.invars)
    count = len(jax.tree.leaves(updates))
    for k, x in enumerate(jax.tree.leaves(state)):
        kinds[count + k] = _Value(_Kind.SHARE if x.ndim else _Kind.UNIFORM)
    _refuse_partial(closed, kinds, axis_name)

    def typed_step(updates: Updates, state: State, params: Params) -> Any:
        return step(*jax.tree.map(like_varying, (updates, state, params), shares))

    shares = (updates, state, params)
    fresh = jax.eval_shape(lambda p: rule.init(jax.tree.map(like_varying, p, own)), values)
    if jax.tree.structure(fresh) != jax.tree.structure(state):
        _refuse("the state depends on the shape of a leaf", axis_name)
    # of the dtypes that the state has by now: a rule may widen it
    whole_state = jax.tree.map(
        lambda w, x: jax.ShapeDtypeStruct(w.shape, x.dtype, weak_type=getattr(x, "weak_type", False)),
        fresh,
        state,
    )
    other = jax.make_jaxpr(typed_step)(gradients, whole_state, None if params is None else values)
    different = difference_in_work(closed, other)
    if different is not None:
        _refuse(f"{different or 'the rule'} depends on the shape of a leaf", axis_name)


def _refuse_partial(closed: Any, kinds: list[_Value], axis_name: str) -> None:
    for value in _follow(closed.jaxpr, kinds, axis_name, ""):
        if value.kind is _Kind.PARTIAL:
            _refuse(value.blame, axis_name)


def _refuse(blame: str, axis_name: str) -> None:
    name = blame.rsplit(".", 1)[-1].split(" ")[0]
    ours = _OURS.get(name)
    under_jit = "zero(rule, mesh, axis) under jit, where every rule sees whole leaves"
    raise ReductionError(
        message(
            "zero",
            f"{blame} within the axis {axis_name!r}, and would see one device's share of each leaf",
            allowed="inside a mapped axis optax's rules must work element by element",
            do=f"Use {ours}, which sums over the axis, or {under_jit}" if ours else f"Use {under_jit}",
        )
    )


def _follow(jaxpr: Any, inputs: Sequence[_Value], axis_name: str, outer: str) -> list[_Value]:
    """What the outputs of a jaxpr are, given what its inputs are."""
    known: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Value:
        return _UNIFORM if hasattr(atom, "val") else known.get(atom, _UNIFORM)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        results = _equation(eqn, operands, axis_name, outer)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(eqn: Any, operands: list[_Value], axis_name: str, outer: str) -> list[_Value]:
    name, count = eqn.primitive.name, len(eqn.outvars)
    most = max(operands, default=_UNIFORM, key=lambda v: v.kind)
    blame = transform_of(eqn) or outer
    if codec_of(eqn):
        return [most] * count  # it knows which part of a leaf it has, and its blocks are not divided
    if name in ("cond", "while", "scan"):
        return _LOOPS[name](eqn, operands, axis_name, blame)
    inner = _only_jaxpr(eqn)
    if inner is not None and len(inner.invars) == len(operands):
        return _follow(inner, operands, axis_name, blame)
    if name == "iota" and eqn.outvars[0].aval.size > 1:
        return [_Value(_Kind.PARTIAL, f"{blame or 'the rule'} depends on the places of elements")]
    if name.startswith(_RANDOM):
        large = any(v.aval.size > 1 for v in eqn.outvars)
        drawn = _Value(_Kind.PARTIAL, f"{blame or 'the rule'} draws random numbers by shape")
        return [drawn if large else _UNIFORM] * count
    if name.startswith(_WHOLE_AFTERWARDS) and not name.startswith("psum_scatter"):
        axes = eqn.params.get("axes", eqn.params.get("axis_name", ()))
        if axis_name in (axes if isinstance(axes, tuple) else (axes,)):
            gathers = name.startswith("all_gather")
            return [
                _Value(_Kind.PARTIAL, f"{blame or 'the rule'} adds up different shares")
                if v.kind is _Kind.SHARE and not gathers
                else _UNIFORM
                for v in operands
            ]
    if most.kind is _Kind.SHARE and name not in ELEMENTWISE:
        doing = (
            "reduces over a leaf" if name.startswith(("reduce", "arg", "dot")) else f"uses {name} on a leaf"
        )
        return [_Value(_Kind.PARTIAL, f"{blame or 'the rule'} {doing}")] * count
    return [most] * count


def _only_jaxpr(eqn: Any) -> Any:
    """The jaxpr that a call equation calls."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if key in eqn.params:
            return getattr(eqn.params[key], "jaxpr", eqn.params[key])
    return None


def _joined(one: list[_Value], other: list[_Value]) -> list[_Value]:
    return [max(a, b, key=lambda v: v.kind) for a, b in zip(one, other, strict=True)]


def _follow_cond(eqn: Any, operands: list[_Value], axis_name: str, blame: str) -> list[_Value]:
    choice, *rest = operands
    results = [_UNIFORM] * len(eqn.outvars)
    for branch in eqn.params["branches"]:
        results = _joined(results, _follow(branch.jaxpr, rest, axis_name, blame))
    return [choice] * len(results) if choice.kind is _Kind.PARTIAL else results


def _follow_while(eqn: Any, operands: list[_Value], axis_name: str, blame: str) -> list[_Value]:
    p = eqn.params
    before_test, before = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    test_consts, consts, carry = operands[:before_test], operands[before_test:before], operands[before:]
    carry = _settled(p["body_jaxpr"].jaxpr, consts, carry, axis_name, blame)
    (test,) = _follow(p["cond_jaxpr"].jaxpr, [*test_consts, *carry], axis_name, blame)
    return [test] * len(carry) if test.kind is _Kind.PARTIAL else carry


def _follow_scan(eqn: Any, operands: list[_Value], axis_name: str, blame: str) -> list[_Value]:
    p = eqn.params
    jaxpr, n, k = p["jaxpr"].jaxpr, p["num_consts"], p["num_carry"]
    consts, carry, xs = operands[:n], operands[n : n + k], operands[n + k :]
    # a scanned axis takes a share apart by position
    xs = [_Value(_Kind.PARTIAL, f"{blame or 'the rule'} scans a leaf") if v.kind else v for v in xs]
    carry = _settled(jaxpr, consts, carry, axis_name, blame, xs)
    return [*carry, *_follow(jaxpr, [*consts, *carry, *xs], axis_name, blame)[k:]]


def _settled(
    jaxpr: Any,
    consts: list[_Value],
    carry: list[_Value],
    axis_name: str,
    blame: str,
    xs: Sequence[_Value] = (),
) -> list[_Value]:
    """What a loop's carry is after any number of rounds: kinds only rise, so this ends."""
    while True:
        after = _follow(jaxpr, [*consts, *carry, *xs], axis_name, blame)[: len(carry)]
        new = _joined(carry, after)
        if [v.kind for v in new] == [v.kind for v in carry]:
            return new
        carry = new


_LOOPS = {"cond": _follow_cond, "while": _follow_while, "scan": _follow_scan}
