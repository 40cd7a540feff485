"""Lifts functions on one array to a rule on a tree: how rules are written, the library's and your own.

A rule is a sequence of stages. A stage says what it keeps and how it turns one leaf's gradient into one
update; `lift` does the rest, once for all rules: the walk over the tree, counters, float32 arithmetic with a
single rounding at the end, one traced function per distinct leaf shape, sums over leaves and over the devices
that share them, and the errors that name a leaf.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ._axes import windows
from ._errors import Problems, message
from ._masks import spread
from ._numerics import is_complex
from ._parts import Largest as Largest
from ._parts import along as along
from ._parts import max_along as max_along
from ._parts import shape_of as shape_of
from ._parts import size_of as size_of
from ._parts import sum_along as sum_along
from ._paths import leaf_paths
from ._segments import Segment, Walk, segments_of
from ._stage import Stage as Stage
from ._stage import check_states
from ._state_fields import LeafField as LeafField
from ._state_fields import SharedField as SharedField
from ._state_fields import constant as constant
from ._state_fields import count as count
from ._state_fields import first_parameters as first_parameters
from ._state_fields import is_first_step as is_first_step
from ._state_fields import random_key as random_key
from ._state_fields import shaped as shaped
from ._state_fields import shared as shared
from ._state_fields import zeros as zeros
from ._types import Params, Rule, State, Updates, make_rule
from .matrix.segment import MatrixSegment
from .matrix.stage import MatrixStage


def lift(who: str, *stages: Stage, chained: bool = True) -> Rule:
    """A rule that runs `stages` on every leaf.

    Args:
      who: the rule's name, for errors.
      *stages: run in order; each gets the update of the one before.
      chained: whether the state is a tuple with one entry per stage, as `optax.chain` has it, or
        the bare state of a single stage.
    """
    segments = _segments(who, stages)
    needs_params = any(stage.needs_params or callable(stage.mask) for stage in stages)

    def init(params: Params) -> State:
        _check_params(who, params, any(stage.is_real for stage in stages))
        for stage in stages:
            if stage.mask is not None:
                spread(who, stage.mask, params, params, at_init=True)
        states = tuple(_init_stage(who, stage, params) for stage in stages)
        return states if chained else states[0]

    def update(
        updates: Updates, state: State, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, State]:
        states = state if chained else (state,)
        check_states(who, stages, states, state)
        if needs_params and params is None:
            raise ValueError(
                message(who, "params are needed, got None", do="Call update(grads, state, params)")
            )
        walk = Walk(who, updates)
        values = walk.aligned(params, "params") if needs_params else [None] * len(walk.leaves)
        made, new = list(walk.leaves), []
        for segment in segments:
            made, kept = segment.run(walk, made, values, states[len(new) :], params, extra)
            new += kept
        return walk.treedef.unflatten(made), tuple(new) if chained else new[0]

    update.stages = stages  # type: ignore[attr-defined]
    return make_rule(init, update)


def joined(who: str, *rules: Rule) -> Rule:
    """One rule of the stages of lifted rules: what passes between them is not rounded.

    >>> rule = joined("doubled", jl.scale_by_learning_rate(2.0), jl.scale_by_learning_rate(1.0))
    >>> updates, _ = rule.update(jnp.float32(3.0), rule.init(jnp.float32(0.0)))
    >>> float(updates)
    6.0
    """
    return lift(who, *(stage for rule in rules for stage in rule.update.stages))  # type: ignore[attr-defined]


def _segments(who: str, stages: Sequence[Stage]) -> list[Segment | MatrixSegment]:
    """Stages that run together: on leaves before and after all that see whole matrices, and those."""
    places = [n for n, stage in enumerate(stages) if isinstance(stage, MatrixStage)]
    if not places:
        return [*segments_of(who, stages)]
    first, last = places[0], places[-1] + 1
    before = segments_of(who, stages[:first], is_end=False) if first else []
    after = segments_of(who, stages[last:]) if last < len(stages) else []
    return [*before, MatrixSegment(who, tuple(stages[first:last]), not after), *after]


def _init_stage(who: str, stage: Stage, params: Params) -> State:
    # who needs whole leaves takes what it gets for one; placement refuses it
    with windows({}) if stage.needs == "leaf" else contextlib.nullcontext():
        return stage.state._replace(**{name: kind.begin(who, params) for name, kind in stage.kinds.items()})


def _check_params(who: str, params: Params, is_real: bool) -> None:
    problems = Problems(who)
    leaves = jax.tree.leaves(params)
    for i in [i for i, x in enumerate(leaves) if is_real and _is_floating(x) and is_complex(x)]:
        problems.add("works on real numbers only, got a complex leaf", at=leaf_paths(params)[i] or "the root")
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
