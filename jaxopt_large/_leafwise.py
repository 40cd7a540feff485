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
import numpy as np
import optax
from jaxtyping import Array

from ._errors import Problems, message
from ._numerics import accumulation_dtype, safe_increment, widest
from ._paths import difference, leaf_paths
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
      mask: a tree of booleans, a prefix of one, or a function from parameters to one. Where it is
        False the stage passes the gradient on and keeps its fields.
    """

    step: Callable[[Scalars, Array, Any, Fields], tuple[Array, Fields]]
    state: Callable[..., Any] = optax.EmptyState
    fields: Mapping[str, Callable[[Array], Array]] = dataclasses.field(default_factory=dict)
    scalars: Callable[[Array], Scalars] | None = None
    needs_params: bool = False
    mask: Any = None


def zeros(dtype: Any = None) -> Callable[[Array], Array]:
    """Initial value: zeros in the accumulation dtype, or in `dtype`."""
    return constant(0.0, dtype)


def constant(value: Any, dtype: Any = None) -> Callable[[Array], Array]:
    """Initial value: `value` everywhere, in the accumulation dtype, or in `dtype`."""

    def initial(param: Array) -> Array:
        return jnp.full_like(param, value, dtype=dtype or accumulation_dtype(param.dtype))

    return initial


def check_state_dtype(who: str, name: str, dtype: Any) -> None:
    """Raises unless `dtype` is None or a floating dtype (an integer one would truncate to 0)."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            message(
                who,
                f"{name} is not a floating dtype, got {np.dtype(dtype).name!r}",
                allowed="None, bfloat16, float16, float32 or float64",
            )
        )


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
        states = tuple(_init_stage(stage, params) for stage in stages)
        return states if chained else states[0]

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        del extra
        states = state if chained else (state,)
        if needs_params and params is None:
            raise ValueError(
                message(who, "params are needed, got None", do="Call update(grads, state, params)")
            )
        walk = _Walk(who, updates)
        gradients = walk.leaves
        values = walk.aligned(params, "params") if needs_params else [None] * len(gradients)
        fields = [_leaf_fields(walk, s, st) for s, st in zip(stages, states, strict=True)]
        active = [_active(walk, stage, params) for stage in stages]
        scalars = tuple(
            stage.scalars(st.count) if stage.scalars else {} for stage, st in zip(stages, states, strict=True)
        )
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
    dtype = widest(*(x.dtype for x in jax.tree.leaves((grad, param))))
    update = grad.astype(dtype)
    wide_param = None if param is None else param.astype(dtype)
    new_fields = []
    for stage, on, shared, kept in zip(stages, active, scalars, fields, strict=True):
        if not on:
            new_fields.append(kept)
            continue
        shared = {name: x.astype(dtype) for name, x in shared.items()}
        update, new = stage.step(
            shared, update, wide_param, {name: x.astype(dtype) for name, x in kept.items()}
        )
        new_fields.append({name: new[name].astype(x.dtype) for name, x in kept.items()})
    return update.astype(grad.dtype), tuple(new_fields)


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
    mask = stage.mask(params) if callable(stage.mask) else stage.mask
    spread = jax.tree.map(lambda m, sub: jax.tree.map(lambda _: bool(m), sub), mask, walk.updates)
    return jax.tree.leaves(spread)


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
            allowed="arrays of a real floating dtype",
            do="Keep other leaves out with partition({..., glob: freeze()}) or optax.masked",
        )
    problems.raise_if_any(TypeError)


def _is_floating(x: Any) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
