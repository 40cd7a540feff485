"""Lifts functions on one array to a rule on a tree: how rules are written, the library's and your own.

A rule is a sequence of stages. A stage says what it keeps and how it turns one leaf's gradient into one
update; `lift` does the rest, once for all rules: the walk over the tree, counters, float32 arithmetic with a
single rounding at the end, one traced function per distinct leaf shape, sums over leaves and over the devices
that share them, and the errors that name a leaf.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ._axes import sum_over_shards
from ._errors import SCHEDULED, Problems, check_hyperparameters, message
from ._masks import spread
from ._numerics import as_scalar, is_complex, real_dtype, widest
from ._paths import difference, leaf_paths
from ._state_fields import LeafField as LeafField
from ._state_fields import SharedField as SharedField
from ._state_fields import constant as constant
from ._state_fields import count as count
from ._state_fields import first_parameters as first_parameters
from ._state_fields import random_key as random_key
from ._state_fields import shaped as shaped
from ._state_fields import shared as shared
from ._state_fields import zeros as zeros
from ._states import described
from ._types import Params, Rule, State, Updates, make_rule
from .tracing.calls import named_call

Needs = Literal["elements", "leaf"]
_NO_STATE = optax.EmptyState()


@dataclasses.dataclass(frozen=True)
class LeafStep:
    """What a call of a stage's step is, for those who read a traced update; `needs` as in `Stage`."""

    needs: Needs


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a rule does to one leaf. Arrays are in the leaf's accumulation dtype throughout.

    Attributes:
      step: (shared, gradient, parameter, kept) -> (update, kept). `kept` is the state's NamedTuple with the
        arrays of this leaf, and with what all leaves share as it was before the step; what comes back in a
        shared field does not count. A stage that measures gets the sums of its leaf as a fifth argument.
      state: the state's NamedTuple with a field in each place, made by `zeros`, `constant`, `shaped`,
        `count`, `shared` or `random_key`; None for one that is not kept.
      shared: from the state, without the arrays of leaves, what all leaves share in this step: any tree.
      measure: (shared, gradient, parameter, kept) -> sums over the elements of a leaf, any tree of numbers.
        They are added up over the devices that share the leaf. What it costs is one exchange per step.
      combine: (shared, state, totals) -> (shared, state): what all leaves share, and the shared fields, from
        the sums over all leaves.
      needs: what a step must see. "elements": each element depends on its own and on what is shared; devices
        may hold shares of a leaf. "leaf": a whole leaf, such as rows, columns or a matrix product.
      needs_params: whether the parameter is read.
      mask: a glob, a tree of booleans, a prefix of one, or a function from parameters to one. Where it is
        False the stage passes the gradient on and keeps its fields.
      scheduled: the name of the hyper-parameter that a schedule gives, as `shared`.
    """

    step: Callable[..., tuple[Array, Any]]
    state: Any = _NO_STATE
    shared: Callable[[Any], Any] | None = None
    measure: Callable[..., Any] | None = None
    combine: Callable[[Any, Any, Any], tuple[Any, Any]] | None = None
    needs: Needs = "elements"
    needs_params: bool = False
    mask: Any = None
    scheduled: str = ""

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        """The fields that are kept, by name."""
        names = getattr(self.state, "_fields", ())
        return {name: kind for name, kind in zip(names, self.state, strict=True) if kind is not None}

    @property
    def of_leaves(self) -> list[str]:
        """The names of the fields that are trees like the parameters."""
        return [name for name, kind in self.kinds.items() if isinstance(kind, LeafField)]

    @property
    def of_all(self) -> list[str]:
        """The names of the fields that all leaves share."""
        return [name for name, kind in self.kinds.items() if isinstance(kind, SharedField)]


def lift(who: str, *stages: Stage, chained: bool = True) -> Rule:
    """A rule that runs `stages` on every leaf.

    Args:
      who: the rule's name, for errors.
      *stages: run in order; each gets the update of the one before.
      chained: whether the state is a tuple with one entry per stage, as `optax.chain` has it, or
        the bare state of a single stage.
    """
    segments = _segments(stages)
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
        values = walk.aligned(params, "params") if needs_params else [None] * len(walk.leaves)
        made, new = list(walk.leaves), []
        for segment in segments:
            made, kept = segment.run(walk, made, values, states[len(new) :], params)
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


def _segments(stages: Sequence[Stage]) -> list["_Segment"]:
    """Stages that one function per leaf can run: up to the next that measures all leaves first."""
    groups: list[list[Stage]] = [[]]
    for stage in stages:
        if stage.measure is not None and groups[-1]:
            groups.append([])
        groups[-1].append(stage)
    last = len(groups) - 1
    return [_Segment(tuple(group), n == 0, n == last) for n, group in enumerate(groups)]


class _Segment:
    """Stages that run together on every leaf; the first of them may measure."""

    def __init__(self, stages: tuple[Stage, ...], is_first: bool, is_last: bool):
        self._stages = stages
        needs = "leaf" if any(stage.needs == "leaf" for stage in stages) else "elements"
        step = functools.partial(_leaf_step, stages, is_last)
        self._step = named_call(step, "leaf_step", LeafStep(needs), LeafStep(needs), static_argnums=0)
        self._measure = jax.jit(functools.partial(_measured, stages[0]))

    def run(
        self,
        walk: "_Walk",
        updates: list[Array],
        values: list[Any],
        states: Sequence[Any],
        params: Params | None,
    ) -> tuple[list[Array], list[Any]]:
        """The updates, and the states of the stages."""
        stages = self._stages
        states = states[: len(stages)]
        fields = [_leaf_fields(walk, s, st) for s, st in zip(stages, states, strict=True)]
        active = list(zip(*(_active(walk, s, params) for s in stages), strict=True))
        given = [_shared(walk.who, s, st) for s, st in zip(stages, states, strict=True)]
        kept = [_without_leaves(s, st) for s, st in zip(stages, states, strict=True)]
        sums: list[Any] = [None] * len(updates)
        if stages[0].measure is not None and updates:
            measured = [
                self._measure(given[0], kept[0], g, p, f[0])
                for g, p, f in zip(updates, values, zip(*fields, strict=True), strict=True)
            ]
            sums = _over_shards(measured)
        after = list(kept)
        if stages[0].combine is not None and updates:
            totals = jax.tree.map(lambda *xs: functools.reduce(jnp.add, xs), *sums)
            given[0], after[0] = stages[0].combine(given[0], kept[0], totals)
        keys = []
        for n, stage in enumerate(stages):
            own, after[n] = _leaf_keys(stage, kept[n], after[n], len(updates))
            keys.append(own)
        results = [
            self._step(a, tuple(given), tuple(ks), g, p, f, m)
            for a, ks, g, p, f, m in zip(
                active,
                zip(*keys, strict=True),
                updates,
                values,
                zip(*fields, strict=True),
                sums,
                strict=True,
            )
        ]
        new = [
            _rebuild(walk, s, before, now, [f[i] for _, f in results])
            for i, (s, before, now) in enumerate(zip(stages, kept, after, strict=True))
        ]
        return [u for u, _ in results], new


def _leaf_step(
    stages: tuple[Stage, ...],
    rounds: bool,
    active: tuple[bool, ...],
    given: tuple[Any, ...],
    kept: tuple[Any, ...],
    grad: Array,
    param: Any,
    fields: Any,
    sums: Any,
) -> tuple[Array, tuple[dict[str, Array], ...]]:
    """All stages on one leaf: cast once on the way in, round once on the way out."""
    dtype, real, out = _dtypes(grad, param, fields)
    update = grad.astype(dtype)
    wide_param = None if param is None else param.astype(dtype)
    new_fields = []
    for n, (stage, on) in enumerate(zip(stages, active, strict=True)):
        if not on:
            new_fields.append(fields[n])
            continue
        wide = _widened(stage, kept[n], fields[n], dtype)
        args = (_as_real(given[n], real), update, wide_param, wide)
        measured = () if n or stage.measure is None else (_as_real(sums, real),)
        update, new = stage.step(*args, *measured)
        new_fields.append({name: _as(getattr(new, name), x.dtype) for name, x in fields[n].items()})
    return (_as(update, out) if rounds else update), tuple(new_fields)


def _measured(stage: Stage, given: Any, kept: Any, grad: Array, param: Any, fields: Any) -> Any:
    """The sums of one leaf, float32 or wider."""
    dtype, real, _ = _dtypes(grad, param, (fields,))
    wide_param = None if param is None else param.astype(dtype)
    wide = _widened(stage, kept, fields, dtype)
    return stage.measure(_as_real(given, real), grad.astype(dtype), wide_param, wide)  # type: ignore[misc]


def _dtypes(grad: Array, param: Any, fields: Any) -> tuple[Any, Any, Any]:
    """In which dtype a leaf is worked on, its real counterpart, and the update's."""
    given = [x.dtype for x in jax.tree.leaves((grad, param))]
    kept_complex = [x.dtype for x in jax.tree.leaves(fields) if is_complex(x)]
    dtype = widest(*given, *kept_complex)
    real = real_dtype(dtype)
    out = grad.dtype if jnp.issubdtype(grad.dtype, jnp.inexact) else real
    if dtype.kind == "c" and any(jnp.issubdtype(d, jnp.complexfloating) for d in given):
        out = widest(out, dtype)
    return dtype, real, out


def _widened(stage: Stage, kept: Any, fields: dict[str, Array], dtype: Any) -> Any:
    """The state of one leaf, its arrays in the leaf's dtype."""
    real = real_dtype(dtype)
    wide = {name: x.astype(real if stage.kinds[name].real else dtype) for name, x in fields.items()}
    return kept._replace(**wide) if wide else kept


def _as_real(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _as(x: Array, dtype: Any) -> Array:
    """In another dtype; of complex numbers without an imaginary part, the real one."""
    if is_complex(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    return x.astype(dtype)


def _over_shards(measured: list[Any]) -> list[Any]:
    """The sums of each leaf, over the devices that share it: all in one exchange."""
    numbers, treedef = jax.tree.flatten(measured)
    dtype = widest(*(x.dtype for x in numbers))
    whole = sum_over_shards(jnp.stack([x.astype(dtype) for x in numbers]))
    return treedef.unflatten([whole[n] for n in range(len(numbers))])


def _shared(who: str, stage: Stage, state: State) -> Any:
    """What all leaves share; what a user's schedule returns is checked first."""
    found = stage.shared(_without_leaves(stage, state)) if stage.shared else None
    if stage.scheduled:
        check_hyperparameters(who, **{stage.scheduled: (found, SCHEDULED)})
        found = as_scalar(found)
    return found


def _without_leaves(stage: Stage, state: State) -> Any:
    """The state with None in the place of trees like the parameters."""
    return stage.state._replace(
        **dict.fromkeys(stage.of_leaves), **{name: getattr(state, name) for name in stage.of_all}
    )


def _leaf_keys(stage: Stage, kept: Any, after: Any, leaves: int) -> tuple[list[Any], Any]:
    """What each leaf's step sees of the shared fields, a random key of its own; and the keys of the next."""
    names = [n for n in stage.of_all if jnp.issubdtype(getattr(kept, n).dtype, jax.dtypes.prng_key)]
    if not names:
        return [kept] * leaves, after
    drawn = {name: jax.random.split(getattr(kept, name), leaves + 1) for name in names}
    own = [kept._replace(**{name: keys[i + 1] for name, keys in drawn.items()}) for i in range(leaves)]
    return own, after._replace(**{name: keys[0] for name, keys in drawn.items()})


def _check_states(who: str, stages: Sequence[Stage], states: Any, state: State) -> None:
    """Raises where a state is not one of this rule; all of it is known when a function is traced."""
    wrong = None
    if not isinstance(states, tuple | list) or hasattr(states, "_fields") or len(states) != len(stages):
        wrong = f"expected a tuple of {len(stages)}, got {described(state)}"
    else:
        for i, (stage, st) in enumerate(zip(stages, states, strict=True)):
            if not _is_of(stage, st):
                at = f" at {i}" if states is state else ""
                wrong = f"expected {described(type(stage.state))}{at}, got {described(st)}"
                break
    if wrong is not None:
        do = "Pass what this rule's init or update has returned"
        raise ValueError(message(who, f"the state is not one of {who}: {wrong}", do=do))


def _is_of(stage: Stage, state: Any) -> bool:
    """Is it the stage's state, or one of that name or with those fields, as optax's are?"""
    kind, ours, kept = type(state), type(stage.state), list(stage.kinds)
    fields = getattr(ours, "_fields", ())
    if kind.__name__ == ours.__name__:
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

    def aligned(self, tree: Any, what: str, *, any_shape: bool = False) -> list[Array]:
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
            if jnp.shape(g) != jnp.shape(x) and not any_shape:
                raise ValueError(
                    message(
                        self.who,
                        f"gradient has shape {jnp.shape(g)}",
                        at=leaf_paths(self.updates)[i],
                        allowed=f"the {what} there has shape {jnp.shape(x)}",
                    )
                )
        return leaves


def _leaf_fields(walk: _Walk, stage: Stage, state: State) -> list[dict[str, Array]]:
    columns = {
        name: walk.aligned(
            getattr(state, name), f"state field {name}", any_shape=stage.kinds[name].shape is not None
        )
        for name in stage.of_leaves
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(len(walk.leaves))]


def _active(walk: _Walk, stage: Stage, params: Params) -> list[bool]:
    if stage.mask is None:
        return [True] * len(walk.leaves)
    return spread(walk.who, stage.mask, params, walk.updates)


def _rebuild(walk: _Walk, stage: Stage, before: Any, now: Any, fields: list[dict[str, Array]]) -> State:
    """The state after the step; what `combine` has left as it was goes on by itself."""
    new: dict[str, Any] = {n: walk.treedef.unflatten([f[n] for f in fields]) for n in stage.of_leaves}
    for name in stage.of_all:
        old, made = getattr(before, name), getattr(now, name)
        new[name] = stage.kinds[name].next(old) if made is old else made
    return stage.state._replace(**new)


def _init_stage(stage: Stage, params: Params) -> State:
    new = {name: jax.tree.map(stage.kinds[name].initial, params) for name in stage.of_leaves}
    return stage.state._replace(**new, **{name: stage.kinds[name].initial() for name in stage.of_all})


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
