"""Stages that work on whole matrices, run together: leaves to their owners, and back, once."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array

from .._axes import reduction_axes
from .._compat import as_varying, shard_map
from .._errors import message
from .._leaf_step import as_real, dtypes_of, out_dtype, rounded, widened
from .._numerics import times
from .._partition import normal_spec
from .._paths import leaf_paths
from .._segments import Walk, as_seen, leaf_fields, rebuilt, shared_values, without_leaves
from .._stage import Stage
from .._types import Params
from ..tracing.calls import named_call
from ._spreads import field_spread, spread_of, team_of
from ._transport import Spread, Team
from .owners import Member, batches
from .plan import MatrixLeaf, MatrixPlan
from .readings import Turned
from .stage import MatrixField, MatrixStage, MatrixStep


class MatrixSegment:
    """Stages of which the first and the last see whole matrices."""

    def __init__(self, who: str, stages: tuple[Any, ...], is_last: bool):
        if any(s.mask is not None or s.measure is not None for s in stages):
            wrong = "between what works on whole matrices stands a link with a mask, or sums over leaves"
            raise ValueError(message(who, wrong, do="Put it before, or after"))
        self._who, self._stages, self._rounds = who, stages, is_last
        told = MatrixStep(who)
        work = functools.partial(_run, stages)
        self._call = named_call(work, f"{who}_matrices", told, told, static_argnums=(0,))

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
        del params
        stages, states = self._stages, states[: len(self._stages)]
        pairs = list(zip(stages, states, strict=True))
        fields = list(zip(*(leaf_fields(walk, s, st) for s, st in pairs), strict=True))
        given = tuple(shared_values(walk.who, s, st, extra) for s, st in pairs)
        kept = [without_leaves(s, st) for s, st in pairs]
        seen = tuple(as_seen(s, k) for s, k in zip(stages, kept, strict=True))
        plan = states[0].matrices
        job = self._job(plan, walk, updates, values, fields)
        arrays = [
            [g, *([p] if job.reads_params else []), *(x for own in f for x in own.values())]
            for g, p, f in zip(updates, values, fields, strict=True)
        ]
        made = self._call(job, arrays, given, seen) if updates else []
        out = [u for u, *_ in made]
        if self._rounds:
            originals = zip(out, walk.leaves, values, strict=True)
            out = [rounded(u, out_dtype(g.dtype, p, u.dtype)) for u, g, p in originals]
        new = []
        for n, (stage, before) in enumerate(zip(stages, kept, strict=True)):
            start = 1 + sum(len(s.of_leaves) for s in stages[:n])
            own = [dict(zip(stage.of_leaves, xs[start:], strict=False)) for xs in made]
            new.append(rebuilt(walk, stage, before, before, own))
        return out, new

    def _job(
        self, plan: MatrixPlan, walk: Walk, updates: list[Array], values: list[Any], fields: list[Any]
    ) -> "_Job":
        stages, team = self._stages, team_of(self._who, plan)
        scaled = any(isinstance(s, MatrixStage) and s.factor is not None for s in stages[:-1])
        turns = not scaled and all(s.transposes for s in stages if isinstance(s, MatrixStage))
        first, last = stages[0], stages[-1]
        with_params = any(s.needs_params for s in stages)
        leaves = self._leaves(plan, walk)
        keys = [key for key, _ in jax.tree_util.tree_flatten_with_path(walk.updates)[0]]
        items = []
        for n, (leaf, key, x, p, own) in enumerate(zip(leaves, keys, updates, values, fields, strict=True)):
            view = leaf.view
            turned = turns and view.rows > view.columns
            like = spread_of(leaf, key, x, Turned(view) if turned else view, plan, team)
            spreads = [like] * (2 if with_params else 1)
            for stage, arrays in zip(stages, own, strict=True):
                spreads += [_spread_of_field(stage.kinds[f], leaf, like, team) for f in arrays]
            dtype, _ = dtypes_of(walk.leaves[n].dtype, x, p if with_params else None, own)
            reads, makes = (str(jnp.dtype(way(dtype))) for way in (first.reads, last.makes))
            shape = (view.columns, view.rows) if turned else (view.rows, view.columns)
            seen = [p] if with_params else []
            types = tuple(str(a.dtype) for a in (*seen, *(a for f in own for a in f.values())))
            member = Member(n, (*shape, str(dtype), *types), tuple(spreads))
            factor = 1.0 if last.factor is None else last.factor(view.rows, view.columns)
            items.append(_Item(member, str(dtype), reads, makes, factor))
        return _Job(tuple(items), team, plan.mesh, with_params)

    def _leaves(self, plan: MatrixPlan, walk: Walk) -> list[MatrixLeaf]:
        """What was decided of each leaf."""
        paths = leaf_paths(walk.updates)
        absent = [path for path in paths if path not in plan.of]
        if absent:
            wrong = "a gradient is of no parameter that init was given"
            raise ValueError(message(self._who, wrong, at=absent[0] or "the root"))
        return [plan.of[path] for path in paths]


def _spread_of_field(kind: Any, leaf: MatrixLeaf, like: Spread, team: Team) -> Spread:
    if isinstance(kind, MatrixField):
        return field_spread(kind.whole(leaf), kind.each(leaf.view), leaf.view, like, team)
    return like


# --- on the devices -----------------------------------------------------------------------------------


class _Item(NamedTuple):
    """A leaf of a job.

    Attributes:
      member: the leaf, and what is kept for it.
      dtype: in which it is worked on.
      reads: in which its update travels to its owner.
      makes: in which it travels back.
      factor: that its update is multiplied by.
    """

    member: Member
    dtype: str
    reads: str
    makes: str
    factor: float


class _Job(NamedTuple):
    """All that is known before any array is."""

    items: tuple[_Item, ...]
    team: Team
    mesh: Any
    reads_params: bool


def _run(
    stages: tuple[Stage, ...], job: _Job, arrays: list[list[Array]], given: Any, seen: Any
) -> list[list[Array]]:
    """New updates and fields for each leaf, from its update, its parameter if it is read, and its fields."""
    arrays = [[xs[0].astype(item.reads), *xs[1:]] for xs, item in zip(arrays, job.items, strict=True)]
    local = functools.partial(_on_devices, stages, job)
    made = local(arrays, given, seen) if job.mesh is None else _over_mesh(job, local, arrays, given, seen)
    results = []
    for xs, (u, *fields), item in zip(arrays, made, job.items, strict=True):
        kept = xs[1 + job.reads_params :]
        update = times(item.factor, u.astype(item.dtype)).reshape(xs[0].shape)
        for name in reduction_axes():  # devices have shares of it
            update = as_varying(update, name)
        results.append([update, *(x.reshape(old.shape) for x, old in zip(fields, kept, strict=True))])
    return results


def _on_devices(
    stages: tuple[Stage, ...], job: _Job, arrays: list[list[Array]], given: Any, seen: Any
) -> list[list[Array]]:
    """The same on one device's parts."""
    found: dict[int, list[Array]] = {}
    items = {item.member.number: item for item in job.items}
    for batch in batches([item.member for item in job.items], job.team):
        item = items[batch.members[0].number]
        work = functools.partial(_step, stages, item.dtype, item.makes, job.reads_params, given, seen)
        results = batch.worked_on([arrays[m.number] for m in batch.members], work)
        found.update(zip((m.number for m in batch.members), results, strict=True))
    return [found[item.member.number] for item in job.items]


def _step(
    stages: tuple[Stage, ...],
    dtype: str,
    makes: str,
    reads_params: bool,
    given: Any,
    seen: Any,
    update: Array,
    *rest: Array,
) -> list[Array]:
    """All stages on one stack of matrices."""
    param = rest[0].astype(dtype) if reads_params else None
    fields = iter(rest[1:] if reads_params else rest)
    update, new = update.astype(dtype), []
    real = jnp.finfo(dtype).dtype
    for stage, values, kept in zip(stages, given, seen, strict=True):
        own = dict(zip(stage.of_leaves, fields, strict=False))
        update, made = stage.step(as_real(values, real), update, param, widened(stage, kept, own, dtype))
        if stage is not stages[-1] and isinstance(stage, MatrixStage) and stage.factor is not None:
            update = times(stage.factor(update.shape[1], update.shape[2]), update)
        new += [rounded(getattr(made, name), x.dtype) for name, x in own.items()]
    return [update.astype(makes), *new]


def _over_mesh(job: _Job, local: Any, arrays: list[list[Array]], given: Any, seen: Any) -> list[list[Array]]:
    """`local` on each device of a mesh, on its parts."""
    spreads = [list(item.member.spreads) for item in job.items]
    results = [own[:1] + own[1 + job.reads_params :] for own in spreads]
    specs, out_specs = ([[normal_spec(s.axes) for s in own] for own in x] for x in (spreads, results))
    parts = [
        [_padded(x, s, job) for x, s in zip(xs, own, strict=True)]
        for xs, own in zip(arrays, spreads, strict=True)
    ]
    made = shard_map(local, job.mesh, (specs, PartitionSpec(), PartitionSpec()), out_specs)(
        parts, given, seen
    )
    return [[_cut(x, s) for x, s in zip(xs, own, strict=True)] for xs, own in zip(made, results, strict=True)]


def _padded(x: Array, spread: Spread, job: _Job) -> Array:
    """A whole array with zeros at its ends, so that all devices have equal parts."""
    sizes = [n * job.team.size(*names) for n, names in zip(spread.local, spread.axes, strict=True)]
    if tuple(sizes) == tuple(x.shape):
        return x
    return jnp.pad(x, [(0, size - n) for size, n in zip(sizes, x.shape, strict=True)])


def _cut(x: Array, spread: Spread) -> Array:
    """The inverse."""
    return x[tuple(slice(n) for n in spread.shape)]
