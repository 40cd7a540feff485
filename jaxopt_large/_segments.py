"""Stages that run together on every leaf: one traced function for each distinct leaf shape."""

import contextlib
import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._axes import max_over_shards, reduction_axes, sum_over_shards, window_of
from ._errors import SCHEDULED, check_hyperparameters, message
from ._leaf_step import PartStep, PartSums, Place, leaf_step, measured_leaf
from ._masks import spread
from ._numerics import as_scalar
from ._parts import Largest
from ._paths import difference, leaf_paths
from ._stage import LeafStep, Needs, Stage
from ._types import Params, State, Updates
from ._window import Window
from .tracing.calls import named_call


class Walk:
    """The leaves of the gradient, and other trees brought into the same order."""

    def __init__(self, who: str, updates: Updates):
        self.who, self.updates = who, updates
        self.leaves, self.treedef = jax.tree.flatten(updates)

    def aligned(self, tree: Any, what: str, *, is_shaped: bool = False) -> list[Any]:
        """The leaves of another tree; of a field with shapes of its own, what there is for each leaf."""
        if is_shaped:
            with contextlib.suppress(ValueError):  # it is said below what is wrong
                return self.treedef.flatten_up_to(tree)
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


def segments_of(who: str, stages: Sequence[Stage], *, is_end: bool = True) -> list["Segment"]:
    """Stages that one function per leaf can run: up to the next that measures all leaves first.

    Args:
      who: the rule's name, for errors.
      stages: in their order.
      is_end: do no others follow? Then the last segment rounds.
    """
    groups: list[list[Stage]] = [[]]
    for stage in stages:
        if stage.measure is not None and groups[-1]:
            groups.append([])
        groups[-1].append(stage)
    last = len(groups) - 1
    return [Segment(who, tuple(group), is_end and n == last) for n, group in enumerate(groups)]


class Segment:
    """Stages that run together on every leaf; the first of them may measure."""

    def __init__(self, who: str, stages: tuple[Stage, ...], is_last: bool):
        self._stages = stages
        asked = {stage.needs for stage in stages}
        most: Needs = "leaf" if "leaf" in asked else "axes" if "axes" in asked else "elements"
        self._by_part = most == "axes"
        told = (PartStep if self._by_part else LeafStep)(who, most)
        step = functools.partial(leaf_step, stages, is_last)
        self._step = named_call(step, f"{who}_step", told, told, static_argnums=(0, 1))
        measure = functools.partial(measured_leaf, stages[0])
        if self._by_part:
            sums = PartSums(who)
            self._measure = named_call(measure, f"{who}_sums", sums, sums, static_argnums=0)
        else:
            self._measure = jax.jit(measure, static_argnums=0)

    def run(
        self,
        walk: Walk,
        updates: list[Array],
        values: list[Any],
        states: Sequence[Any],
        params: Params | None,
        extra: dict[str, Any],
    ) -> tuple[list[Array], list[Any]]:
        """The updates, and the states of the stages."""
        stages = self._stages
        places = self._places(walk)
        states = states[: len(stages)]
        fields = [leaf_fields(walk, s, st) for s, st in zip(stages, states, strict=True)]
        active = list(zip(*(_active(walk, s, params) for s in stages), strict=True))
        given = [shared_values(walk.who, s, st, extra) for s, st in zip(stages, states, strict=True)]
        kept = [without_leaves(s, st) for s, st in zip(stages, states, strict=True)]
        sums: list[Any] = [None] * len(updates)
        if stages[0].measure is not None and updates:
            seen = as_seen(stages[0], kept[0])
            rows = zip(active, places, updates, values, fields[0], strict=True)
            measured = [self._measured(a[0], at, given[0], seen, g, p, f) for a, at, g, p, f in rows]
            sums = _over_shards(walk.who, measured)
        after = list(kept)
        if stages[0].combine is not None and updates:
            totals = jax.tree.map(lambda *xs: functools.reduce(jnp.add, xs), *sums)
            given[0], after[0] = stages[0].combine(given[0], kept[0], totals)
        keys = []
        for n, stage in enumerate(stages):
            own, after[n] = _leaf_keys(stage, kept[n], after[n], walk)
            keys.append(own)
        results = [
            self._step((a, at.leaf), original.dtype, tuple(given), tuple(ks), at.starts, g, p, f, m)
            for a, at, original, ks, g, p, f, m in zip(
                active,
                places,
                walk.leaves,
                zip(*keys, strict=True),
                updates,
                values,
                zip(*fields, strict=True),
                sums,
                strict=True,
            )
        ]
        new = [
            rebuilt(walk, s, before, now, [f[i] for _, f in results])
            for i, (s, before, now) in enumerate(zip(stages, kept, after, strict=True))
        ]
        return [u for u, _ in results], new

    def _places(self, walk: Walk) -> list[Place]:
        """What a step may know of where each leaf is."""
        stages, count = self._stages, len(walk.leaves)
        told: Sequence[tuple[Any, ...]] = [(None,) * len(stages)] * count
        if any(stage.by_path for stage in stages):
            paths = leaf_paths(walk.updates)
            told = [tuple(s.by_path(path) if s.by_path else None for s in stages) for path in paths]
        windows: list[Window | None] = [None] * count
        if self._by_part and reduction_axes():
            keyed = jax.tree_util.tree_flatten_with_path(walk.updates)[0]
            windows = [window_of(key) for key, _ in keyed]
        return [
            Place((t, None if w is None else tuple(w.whole)), None if w is None else tuple(w.starts))
            for t, w in zip(told, windows, strict=True)
        ]

    def _measured(self, is_active: bool, at: Place, given: Any, seen: Any, *arrays: Any) -> Any:
        """The sums of a leaf; zeros of one that the stage leaves out."""
        measure = functools.partial(self._measure, at.leaf)
        if is_active:
            return measure(given, seen, at.starts, *arrays)
        found = jax.eval_shape(measure, given, seen, at.starts, *arrays)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found)


def _over_shards(who: str, measured: list[Any]) -> list[Any]:
    """The sums of each leaf, over the devices that share it: all in one exchange for each dtype.

    So are largest values, in one more.
    """
    if not reduction_axes():
        return measured
    found, treedef = jax.tree.flatten(measured, is_leaf=lambda x: isinstance(x, Largest))
    most = [n for n, x in enumerate(found) if isinstance(x, Largest)]
    largest = max_over_shards([found[n].value for n in most]) if most else []
    for n, x in zip(most, largest, strict=True):
        found[n] = Largest(x)
    rest = [n for n in range(len(found)) if n not in most]
    for n, x in zip(rest, _summed(who, [found[n] for n in rest]), strict=True):
        found[n] = x
    return treedef.unflatten(found)


def _summed(who: str, numbers: list[Any]) -> list[Any]:
    if any(not hasattr(x, "dtype") for x in numbers):
        raise TypeError(
            message(who, "a stage measures what is no array", allowed="sums over a leaf's elements")
        )
    alike: dict[Any, list[int]] = {}
    for n, x in enumerate(numbers):
        alike.setdefault(x.dtype, []).append(n)
    found = list(numbers)
    for places in alike.values():
        whole = sum_over_shards(jnp.concatenate([numbers[n].reshape(-1) for n in places]))
        ends = [0, *itertools.accumulate(numbers[n].size for n in places)]
        for n, start, stop in zip(places, ends, ends[1:], strict=False):
            found[n] = whole[start:stop].reshape(numbers[n].shape)
    return found


def shared_values(who: str, stage: Stage, state: State, extra: dict[str, Any]) -> Any:
    """What all leaves share; what a user's schedule returns is checked first."""
    missing = [name for name in stage.extra if extra.get(name) is None]
    if missing:
        do = f"Call update(grads, state, params, {missing[0]}=...)"
        raise TypeError(message(who, f"{' and '.join(missing)} needed, got None", do=do))
    further = {name: extra[name] for name in stage.extra}
    found = stage.shared(without_leaves(stage, state), **further) if stage.shared else None
    if stage.scheduled:
        check_hyperparameters(who, **{stage.scheduled: (found, SCHEDULED)})
        found = as_scalar(found)
    return found


def without_leaves(stage: Stage, state: State) -> Any:
    """The state with None in the place of trees like the parameters."""
    return stage.state._replace(
        **dict.fromkeys(stage.of_leaves),
        **{name: getattr(state, name) for name in stage.of_all},
        **{name: getattr(state, name, None) for name in stage.of_none},
    )


def as_seen(stage: Stage, kept: Any) -> Any:
    """The shared fields as a leaf's step sees them: what `shared` is made of need not be handed to each."""
    if stage.shared is None:
        return kept
    return kept._replace(**dict.fromkeys(name for name in stage.of_all if not _is_key(getattr(kept, name))))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _leaf_keys(stage: Stage, kept: Any, after: Any, walk: Walk) -> tuple[list[Any], Any]:
    """What each leaf's step sees of the shared fields, with a random key by its path; and the next fields."""
    names = [n for n in stage.of_all if _is_key(getattr(kept, n))]
    seen = as_seen(stage, kept)
    if not names:
        return [seen] * len(walk.leaves), after
    # of a clone: whoever leaves a step out, or makes one again, uses the key of the state once more
    drawn = {name: tuple(jax.random.split(jax.random.clone(getattr(kept, name)))) for name in names}
    # not by number: the first leaves of two groups would draw the same
    marks = [zlib.crc32(path.encode()) for path in leaf_paths(walk.updates)]
    own = [
        seen._replace(
            **{name: jax.random.fold_in(jax.random.clone(keys[1]), mark) for name, keys in drawn.items()}
        )
        for mark in marks
    ]
    # a key that `combine` has moved stays where it was put
    following = {name: keys[0] for name, keys in drawn.items() if getattr(after, name) is getattr(kept, name)}
    return own, after._replace(**following)


def leaf_fields(walk: Walk, stage: Stage, state: State) -> list[dict[str, Array]]:
    columns = {
        name: walk.aligned(
            getattr(state, name), f"state field {name}", is_shaped=stage.kinds[name].shape is not None
        )
        for name in stage.of_leaves
    }
    return [{name: column[i] for name, column in columns.items()} for i in range(len(walk.leaves))]


def _active(walk: Walk, stage: Stage, params: Params) -> list[bool]:
    if stage.mask is None:
        return [True] * len(walk.leaves)
    return spread(walk.who, stage.mask, params, walk.updates)


def rebuilt(walk: Walk, stage: Stage, before: Any, now: Any, fields: list[dict[str, Array]]) -> State:
    """The state after the step; what `combine` has left as it was goes on by itself."""
    new: dict[str, Any] = {n: walk.treedef.unflatten([f[n] for f in fields]) for n in stage.of_leaves}
    new |= {name: getattr(before, name) for name in stage.of_none}
    for name in stage.of_all:
        old, made = getattr(before, name), getattr(now, name)
        new[name] = stage.kinds[name].next(old, before) if made is old else made
    return stage.state._replace(**new)
