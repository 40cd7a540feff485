"""Lifts functions on one array to a rule on a tree.

A rule is a sequence of stages. A stage says what it keeps for one parameter and how it turns one
gradient into one update; `lift` does the rest, once for all rules: the walk over the tree, the
counter, float32 arithmetic with a single rounding at the end, one traced function per distinct leaf
shape, and the errors that name a leaf.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ._errors import SCHEDULED, Problems, check_hyperparameters, message
from ._initial import Initial
from ._masks import spread
from ._numerics import as_scalar, is_complex, real_dtype, safe_increment, widest
from ._paths import difference, leaf_paths
from ._states import described
from ._types import Params, Rule, State, Updates, make_rule

Fields = dict[str, Array]
Scalars = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a rule does to one array.

    Attributes:
      state: the NamedTuple that holds the stage's state; its fields are trees shaped like the
        parameters, beside an optional `count`.
      fields: for each tree in the state, a parameter's initial value of it.
      scalars: from the number of steps taken before this one, what all leaves share in this step.
        A stage that needs it keeps a `count`.
      step: (scalars, gradient, parameter, fields) -> (update, new fields), elementwise, all of it in
        the leaf's accumulation dtype.
      needs_params: whether `step` reads the parameter.
      mask: a glob, a tree of booleans, a prefix of one, or a function from parameters to one. Where it is
        False the stage passes the gradient on and keeps its fields.
      scheduled: the name of the hyper-parameter that a schedule gives, as the scalar `value`.
    """

    step: Callable[[Scalars, Array, Any, Fields], tuple[Array, Fields]]
    state: Callable[..., Any] = optax.EmptyState
    fields: Mapping[str, Initial] = dataclasses.field(default_factory=dict)
    scalars: Callable[[Array], Scalars] | None = None
    needs_params: bool = False
    mask: Any = None
    scheduled: str = ""


def lift(who: str, *stages: Stage, chained: bool = True) -> Rule:
    """A rule that runs `stages` on every leaf.

    Args:
      who: the rule's name, for errors.
      *stages: run in order; each gets the update of the one before.
      chained: whether the state is a tuple with one entry per stage, as `optax.chain` has it, or
        the bare state of a single stage.
    """
    step = jax.jit(functools.partial(_leaf_step, stages), static_argnums=0)
    needs_params = any(stage.needs_params or callable(stage.mask) for stage in stages)

    def init(params: Params) -> State:
        _check_params(who, params)
        for stage in stages:
            if stage.mask is not None:
                spread(who, stage.mask, params, params, at_init=True)
        states = tuple(_init_stage(stage, params) for stage in stages)
        return states if chained else states[0]

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        del extra
        states = state if chained else (state,)
        _check_states(who, stages, states, state)
        if needs_params and params is None:
            raise ValueError(
                message(who, "params are needed, got None", do="Call update(grads, state, params)")
            )
        walk = _Walk(who, updates)
        gradients = walk.leaves
        values = walk.aligned(params, "params") if needs_params else [None] * len(gradients)
        fields = [_leaf_fields(walk, s, st) for s, st in zip(stages, states, strict=True)]
        active = [_active(walk, stage, params) for stage in stages]
        scalars = tuple(_scalars(who, stage, st) for stage, st in zip(stages, states, strict=True))
        results = [
            step(a, scalars, g, p, f)
            for a, g, p, f in zip(
                zip(*active, strict=True), gradients, values, zip(*fields, strict=True), strict=True
            )
        ]
        new_updates = walk.treedef.unflatten([u for u, _ in results])
        new_states = tuple(
            _rebuild(walk, stage, st, [f[i] for _, f in results])
            for i, (stage, st) in enumerate(zip(stages, states, strict=True))
        )
        return new_updates, new_states if chained else new_states[0]

    return make_rule(init, update)


def _leaf_step(
    stages: tuple[Stage, ...], active: tuple[bool, ...], scalars: Any, grad: Array, param: Any, fields: Any
) -> tuple[Array, tuple[Fields, ...]]:
    """All stages on one leaf: cast once on the way in, round once on the way out."""
    given = [x.dtype for x in jax.tree.leaves((grad, param))]
    kept_complex = [x.dtype for x in jax.tree.leaves(fields) if is_complex(x)]
    dtype = widest(*given, *kept_complex)
    real = real_dtype(dtype)
    update = grad.astype(dtype)
    wide_param = None if param is None else param.astype(dtype)
    new_fields = []
    for stage, on, shared, kept in zip(stages, active, scalars, fields, strict=True):
        if not on:
            new_fields.append(kept)
            continue
        shared = {name: x.astype(real) for name, x in shared.items()}
        wide = {name: x.astype(real if stage.fields[name].real else dtype) for name, x in kept.items()}
        update, new = stage.step(shared, update, wide_param, wide)
        new_fields.append({name: _as(new[name], x.dtype) for name, x in kept.items()})
    out = grad.dtype if jnp.issubdtype(grad.dtype, jnp.inexact) else real
    if dtype.kind == "c" and any(jnp.issubdtype(d, jnp.complexfloating) for d in given):
        out = widest(out, dtype)
    return _as(update, out), tuple(new_fields)


def _as(x: Array, dtype: Any) -> Array:
    """In another dtype; of complex numbers without an imaginary part, the real one."""
    if is_complex(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    return x.astype(dtype)


def _scalars(who: str, stage: Stage, state: State) -> Scalars:
    """What all leaves share; what a user's schedule returns is checked first."""
    found = stage.scalars(state.count) if stage.scalars else {}
    if stage.scheduled:
        check_hyperparameters(who, **{stage.scheduled: (found["value"], SCHEDULED)})
        found = {"value": as_scalar(found["value"])}
    return found


def _check_states(who: str, stages: tuple[Stage, ...], states: Any, state: State) -> None:
    """Raises where a state is not one of this rule; all of it is known when a function is traced."""
    wrong = None
    if not isinstance(states, tuple | list) or hasattr(states, "_fields") or len(states) != len(stages):
        wrong = f"expected a tuple of {len(stages)}, got {described(state)}"
    else:
        for i, (stage, st) in enumerate(zip(stages, states, strict=True)):
            if not _is_of(stage, st):
                at = f" at {i}" if states is state else ""
                wrong = f"expected {described(stage.state)}{at}, got {described(st)}"
                break
    if wrong is not None:
        do = "Pass what this rule's init or update has returned"
        raise ValueError(message(who, f"the state is not one of {who}: {wrong}", do=do))


def _is_of(stage: Stage, state: Any) -> bool:
    """Is it the stage's state, or one of that name or with those fields, as optax's are?"""
    kind, kept = type(state), [*stage.fields, *(["count"] if stage.scalars is not None else [])]
    fields = getattr(stage.state, "_fields", ())
    if kind.__name__ == stage.state.__name__:
        others = ()
    elif getattr(kind, "_fields", None) == fields:
        others = tuple(name for name in fields if name not in kept)
    else:
        return False
    there = all(getattr(state, name, None) is not None for name in kept)
    return there and all(getattr(state, name) is None for name in others)


class _Walk:
    """The leaves of the gradient, and other trees brought into the same order."""

    def __init__(self, who: str, updates: Updates):
        self.who, self.updates = who, updates
        self.leaves, self.treedef = jax.tree.flatten(updates)

    def aligned(self, tree: Any, what: str) -> list[Array]:
        leaves, treedef = jax.tree.flatten(tree)
        if treedef != self.treedef:
            raise ValueError(
                message(
                    self.who,
                    f"gradients do not have the structure of the {what}: " + difference(tree, self.updates),
                    do="Pass gradients of the parameters that init was given",
                )
            )
        for i, (g, x) in enumerate(zip(self.leaves, leaves, strict=True)):
            if jnp.shape(g) != jnp.shape(x):
                raise ValueError(
                    message(
                        self.who,
                        f"gradient has shape {jnp.shape(g)}",
                        at=leaf_paths(self.updates)[i],
                        allowed=f"the {what} there has shape {jnp.shape(x)}",
                    )
                )
        return leaves


def _leaf_fields(walk: _Walk, stage: Stage, state: State) -> list[Fields]:
    columns = {name: walk.aligned(getattr(state, name), f"state field {name}") for name in stage.fields}
    return [{name: column[i] for name, column in columns.items()} for i in range(len(walk.leaves))]


def _active(walk: _Walk, stage: Stage, params: Params) -> list[bool]:
    if stage.mask is None:
        return [True] * len(walk.leaves)
    return spread(walk.who, stage.mask, params, walk.updates)


def _rebuild(walk: _Walk, stage: Stage, old: State, fields: list[Fields]) -> State:
    new = {name: walk.treedef.unflatten([f[name] for f in fields]) for name in stage.fields}
    if stage.scalars is not None:
        new["count"] = safe_increment(old.count)
    return stage.state(**new)


def _init_stage(stage: Stage, params: Params) -> State:
    new = {name: jax.tree.map(initial, params) for name, initial in stage.fields.items()}
    if stage.scalars is not None:
        new["count"] = jnp.zeros((), jnp.int32)
    return stage.state(**new)


def _check_params(who: str, params: Params) -> None:
    problems = Problems(who)
    leaves = jax.tree.leaves(params)
    wrong = [i for i, x in enumerate(leaves) if not _is_floating(x)]
    paths = leaf_paths(params) if wrong else []
    for i in wrong:
        got = getattr(leaves[i], "dtype", None) or type(leaves[i]).__name__
        problems.add(
            f"a parameter is not a floating array, got {str(got)!r}",
            at=paths[i] or "the root",
            allowed="arrays of a floating or complex dtype, and numbers",
            do="Keep other leaves out with partition({..., glob: freeze()}) or optax.masked",
        )
    problems.raise_if_any(TypeError)


def _is_floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
