"""One update of `stored`: decode, run the rule, encode; on one CPU device window by window."""

import math
from typing import Any

import jax

from .._axes import reduction_axes
from .._encoded import is_encoded
from .._gradients import Gradients
from .._order import Wrapper, is_inside
from .._states import explained
from .._types import Params, Rule, State, Updates
from ..passes.engine import SplitUpdate
from ..passes.loop import Hold, loop
from ..passes.pass_call import PassCall, each
from ..passes.passes import Pass
from ..passes.split import keep
from ..tracing.update import traced_update
from ._codec import Codec

FEWEST = 2**16  # elements of a leaf: below it, XLA's fusions are as fast as a loop

Held = tuple[State, Any]  # the inner state and the residuals


def updated(
    codec: Codec, rule: Rule, gradients: Gradients, held: Held, params: Params | None, extra: dict[str, Any]
) -> tuple[Updates, Held]:
    """The updates, and what is held afterwards.

    On CPU, XLA computes what a block's maximum is taken of anew for every use, or writes it to memory. In a
    compiled program for one CPU device large leaves are passes, whose loops decode, compute and encode a
    window that stays in cache.
    """

    def whole(updates: Updates, held: Held, params: Params | None) -> tuple[Updates, Held]:
        return _updated_whole(codec, rule, updates, held, params, extra)

    updates = gradients.tree
    if gradients.are_all and runs_in_windows(updates, params):
        traced = traced_update(whole, updates, held, params, keep=keep)
        if traced.does_as_it_returns(updates):
            split = SplitUpdate(traced, jax.tree.leaves(updates), held, 0, copied=True)
            return split.run((updates, held, params), _call)
    return whole(updates, held, params)


def runs_in_windows(updates: Updates, params: Params | None) -> bool:
    """Are large leaves whole on one CPU device, in a program that is to be compiled?"""
    leaves, treedef = jax.tree.flatten(updates)
    return (
        not is_inside(Wrapper.APPLY)  # which splits whole steps
        and jax.device_count() == 1
        and jax.default_backend() == "cpu"
        and jax.sharding.get_abstract_mesh().empty
        and not reduction_axes()
        and any(isinstance(x, jax.core.Tracer) for x in leaves)
        and (params is None or jax.tree.structure(params) == treedef)
        and any(math.prod(x.shape) >= FEWEST for x in leaves)
    )


def _call(pass_: Pass, holds: tuple[Hold, ...]) -> PassCall | None:
    """A loop on CPU, for large leaves in blocks of which nothing whole is decoded before."""
    if not pass_.has_blocks or pass_.size < FEWEST or pass_.precomputed:
        return None

    def on_cpu(arrays: Any, scalars: Any, token: Any) -> Any:
        return loop(pass_, holds, arrays, scalars, token)

    return PassCall(each(pass_.whole), {"cpu": on_cpu})


def _updated_whole(
    codec: Codec, rule: Rule, updates: Updates, held: Held, params: Params | None, extra: dict[str, Any]
) -> tuple[Updates, Held]:
    nodes, inner = jax.tree.flatten(held[0], is_leaf=is_encoded)
    decoded = inner.unflatten([codec.decode(x) for x in nodes])
    if not codec.special:
        with explained("stored", rule.init, decoded, updates, params):
            changes, new = rule.update(updates, decoded, params, **extra)
        residuals = None
    else:
        kept, treedef = jax.tree.flatten(params)
        old = treedef.flatten_up_to(held[1])
        values = [codec.read(p, r) for p, r in zip(kept, old, strict=True)]
        gradients = Gradients(treedef.flatten_up_to(updates), treedef)
        wide = [None if g is None else codec.widen(g, p) for g, p in zip(gradients.leaves, kept, strict=True)]
        values = treedef.unflatten(values)
        wide = treedef.unflatten(wide)
        with explained("stored", rule.init, decoded, wide, values):
            changes, new = rule.update(wide, decoded, values, **extra)
        steps = zip(kept, treedef.flatten_up_to(values), gradients.changes(changes, values), strict=True)
        made = [
            codec.write(i, p, value + u) if codec.keeps(p) else (u, None)
            for i, (p, value, u) in enumerate(steps)
        ]
        changes, residuals = (treedef.unflatten([pair[k] for pair in made]) for k in (0, 1))
    encoded = [
        codec.encode(j, old, x)
        for j, (old, x) in enumerate(zip(nodes, inner.flatten_up_to(new), strict=True))
    ]
    return changes, (inner.unflatten(encoded), residuals)
