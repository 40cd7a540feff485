"""Stages that run together on every leaf: one traced function for each distinct leaf shape."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._axes import sum_over_shards
from ._errors import SCHEDULED, check_hyperparameters, message
from ._masks import spread
from ._numerics import as_scalar, is_complex, real_dtype, widest
from ._paths import difference, leaf_paths
from ._stage import LeafStep, Stage
from ._types import Params, State, Updates
from .tracing.calls import named_call


class Walk:
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


def segments_of(stages: Sequence[Stage]) -> list["Segment"]:
    """Stages that one function per leaf can run: up to the next that measures all leaves first."""
    groups: list[list[Stage]] = [[]]
    for stage in stages:
        if stage.measure is not None and groups[-1]:
            groups.append([])
        groups[-1].append(stage)
    last = len(groups) - 1
    return [Segment(tuple(group), n == 0, n == last) for n, group in enumerate(groups)]


class Segment:
    """Stages that run together on every leaf; the first of them may measure."""

    def __init__(self, stages: tuple[Stage, ...], is_first: bool, is_last: bool):
        self._stages = stages
        needs = "leaf" if any(stage.needs == "leaf" for stage in stages) else "elements"
        step = functools.partial(_leaf_step, stages, is_last)
        self._step = named_call(step, "leaf_step", LeafStep(needs), LeafStep(needs), static_argnums=0)
        self._measure = jax.jit(functools.partial(_measured, stages[0]))

    def run(
        self,
        walk: Walk,
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


def _leaf_fields(walk: Walk, stage: Stage, state: State) -> list[dict[str, Array]]:
    columns = {
        name: walk.aligned(
            getattr(state, name), f"state field {name}", any_shape=stage.kinds[name].shape is not None
        )
        for name in stage.of_leaves
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(len(walk.leaves))]


def _active(walk: Walk, stage: Stage, params: Params) -> list[bool]:
    if stage.mask is None:
        return [True] * len(walk.leaves)
    return spread(walk.who, stage.mask, params, walk.updates)


def _rebuild(walk: Walk, stage: Stage, before: Any, now: Any, fields: list[dict[str, Array]]) -> State:
    """The state after the step; what `combine` has left as it was goes on by itself."""
    new: dict[str, Any] = {n: walk.treedef.unflatten([f[n] for f in fields]) for n in stage.of_leaves}
    for name in stage.of_all:
        old, made = getattr(before, name), getattr(now, name)
        new[name] = stage.kinds[name].next(old) if made is old else made
    return stage.state._replace(**new)
