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
from .._leaf_step import PartStep, PartSums
from .._stage import LeafStep
from .._types import Params, Rule, State, Updates
from ..matrix.stage import MatrixStep
from ..passes.codecs import codec_of
from ..tracing.calls import meaning_of
from ..tracing.primitives import known
from ..tracing.propagate import Lattice, has_inside, propagated
from ..tracing.same_work import difference_in_work
from ..tracing.sources import innermost_transform
from ..tracing.update import traced_update

# what ours does right that optax's cannot know of
_OURS = {
    "clip_by_global_norm": "jl.clip_by_global_norm",
    "apply_if_finite": "jl.skip_nonfinite",
    "MultiSteps": "jl.accumulate",
}


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
    closed = traced_update(step, updates, state, params).closed
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
    other = traced_update(typed_step, gradients, whole_state, None if params is None else values).closed
    different = difference_in_work(closed, other)
    if different is not None:
        _refuse(f"{different or 'the rule'} depends on the shape of a leaf", axis_name)


def _refuse_partial(closed: Any, kinds: list[_Value], axis_name: str) -> None:
    for value in propagated(closed, kinds, _Shares(axis_name)):
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


class _Shares(Lattice[_Value]):
    """The lattice of what values are, seen from one device of a mapped axis."""

    def __init__(self, axis_name: str):
        self._axis_name = axis_name

    def of_constant(self, value: Any) -> _Value:
        del value
        return _UNIFORM

    def of_equation(
        self, equation: Any, operands: list[_Value], around: Sequence[Any]
    ) -> list[_Value] | None:
        name, primitive, count = equation.primitive.name, known(equation), len(equation.outvars)
        most = max(operands, default=_UNIFORM, key=lambda v: v.kind)
        if codec_of(equation):
            return [most] * count  # it knows which part of a leaf it has, and its blocks are not divided
        told = meaning_of(equation)
        if isinstance(told, MatrixStep | PartStep):
            return [most] * count  # it knows where its part lies, and gives shares back
        if isinstance(told, PartSums):
            return [_Value(_Kind.PARTIAL, f"{told.who} adds up its part of a leaf")] * count
        # what a rule says it needs is believed; that it needs no more than elements is looked at
        if isinstance(told, LeafStep) and told.needs == "leaf" and most.kind is _Kind.SHARE:
            return [_Value(_Kind.PARTIAL, f"{told.who} works on whole leaves")] * count
        if has_inside(equation):
            return None
        if name == "iota" and equation.outvars[0].aval.size > 1:
            return [self._partial("depends on the places of elements", equation, around)]
        if primitive.random:
            large = any(v.aval.size > 1 for v in equation.outvars)
            drawn = self._partial("draws random numbers by shape", equation, around) if large else _UNIFORM
            return [drawn] * count
        if primitive.whole:
            axes = equation.params.get("axes", equation.params.get("axis_name", ()))
            if self._axis_name in (axes if isinstance(axes, tuple) else (axes,)):
                return [self._of_all(equation, v, around) for v in operands]
        if most.kind is _Kind.SHARE and not (primitive.element or primitive.moves):
            reduces = name.startswith(("reduce", "arg", "dot"))
            doing = "reduces over a leaf" if reduces else f"uses {name} on a leaf"
            return [self._partial(doing, equation, around)] * count
        return [most] * count

    def _of_all(self, equation: Any, operand: _Value, around: Sequence[Any]) -> _Value:
        """What a sum over the axis, or all shares gathered, makes of an operand."""
        gathers = equation.primitive.name.startswith("all_gather")
        if operand.kind is _Kind.SHARE and not gathers:
            return self._partial("adds up different shares", equation, around)
        return _UNIFORM

    def _partial(self, doing: str, equation: Any, around: Sequence[Any]) -> _Value:
        who = innermost_transform((*around, equation)) or "the rule"
        return _Value(_Kind.PARTIAL, f"{who} {doing}")

    def joined(self, one: _Value, other: _Value) -> _Value:
        return max(one, other, key=lambda v: v.kind)

    def decided(self, choice: _Value, results: list[_Value]) -> list[_Value]:
        return [choice] * len(results) if choice.kind is _Kind.PARTIAL else results

    def scanned(self, equation: Any, x: _Value, around: Sequence[Any]) -> _Value:
        """A scanned axis takes a share apart by position."""
        return self._partial("scans a leaf", equation, around) if x.kind else x
