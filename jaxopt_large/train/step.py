"""One training step and one evaluation, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._nodes import is_past
from .._numerics import accumulation_dtype
from .._types import Params, Rule, Scalar, State, Updates
from ..fused.apply import apply
from ..gradient_norm import WatchState
from ..guards import DynamicLossScaleState, SkipSpikesState
from ..microbatches import mean_gradient
from ..models import Model, Place
from ..safety import SkipNonfiniteState
from ._errors import RunError

Objective = Callable[[Params, Any], Array]  # (parameters, batch) -> a mean over the batch
_MASK = "mask"  # of a batch: which of its targets count
_SCALE = "loss_scale"  # of a batch: what its loss is multiplied with
Gradient = Callable[[Params, Any], tuple[Array, Updates]]  # (parameters, batch) -> loss and gradient


class Metrics(NamedTuple):
    """What a step reports."""

    loss: Float[Array, ""]  # mean over the batch, before the step
    norm: Float[Array, ""]  # of the gradient, before clipping
    skipped: Int[Array, ""]  # steps left out so far
    given_up: Bool[Array, ""]  # has a guard found too many in a row to leave out?


def make_step(
    objective: Objective,
    rule: Rule,
    *,
    gradient: Gradient | None = None,
    mean_over: str | None = None,
    average_gradients: bool = False,
    private: bool = False,
) -> Callable[[Params, State, Any], tuple[Params, State, Metrics]]:
    """(params, state, batch) -> (params, state, metrics).

    The batch's leaves have a leading axis of micro-batches, whose gradients are averaged in float32. Where
    targets are masked, all means are over the targets that count, wherever they are.

    Args:
      objective: the loss that is minimized.
      rule: built around `watched`.
      gradient: (params, batch) -> (loss, gradient); by default `mean_of` the objective.
      mean_over: a mapped axis over which the loss is averaged.
      average_gradients: average gradients over it as well, for rules without `zero`.
      private: the rule is told neither the loss nor how to compute one: nothing but the gradient has noise.
    """
    gradient = gradient or mean_of(objective)

    def step(params: Params, state: State, batch: Any) -> tuple[Params, State, Metrics]:
        scaling = find(DynamicLossScaleState, state)
        loss, grads = gradient(params, batch if scaling is None else _scaled(batch, scaling.scale))
        loss = loss if scaling is None else loss / scaling.scale
        weight = targets_in(batch)
        if mean_over is not None:
            loss = _mean(loss, weight, mean_over)
        if average_gradients:
            grads = _mean(grads, weight, mean_over)
        extra: dict[str, Any] = {}
        if not private:
            extra |= {"value": loss, "obj_fn": _on_part(objective, batch)}
        if weight is not None:  # `zero` in a mapped axis reduces gradients itself
            reduced = mean_over is not None and average_gradients
            extra["weight"] = jax.lax.psum(weight, mean_over) if reduced else weight
        params, state = apply(rule, grads, state, params, **extra)
        watch = find(WatchState, state)
        norm = watch.norm if scaling is None else watch.norm / scaling.scale
        return params, state, Metrics(loss, norm, *_left_out(state))

    return step


def make_evaluation(
    objective: Objective, accuracy: Objective | None, *, mean_over: str | None = None
) -> Callable[[Params, Any], dict[str, Array]]:
    """(params, batch) -> means of the loss, and of the accuracy where the model has one."""

    def evaluate(params: Params, batch: Any) -> dict[str, Array]:
        means = {"validation_loss": objective(params, batch)}
        if accuracy is not None:
            means["validation_accuracy"] = accuracy(params, batch)
        return _mean(means, targets_in(batch), mean_over) if mean_over else means

    return evaluate


def _left_out(state: State) -> tuple[Array, Array]:
    """How many steps the guards have left out, and has one given up?"""
    found = [find(kind, state) for kind in (SkipNonfiniteState, SkipSpikesState, DynamicLossScaleState)]
    skipped = sum((guard.skipped for guard in found if guard is not None), jnp.zeros((), jnp.int32))
    return skipped, jnp.zeros((), bool) if found[1] is None else found[1].given_up


def _scaled(batch: Any, scale: Array) -> Any:
    """A batch whose losses are multiplied with a scale, one for each micro-batch."""
    rows = jax.tree.leaves(batch)[0].shape[0]
    return {**batch, _SCALE: jnp.broadcast_to(scale, (rows,))}


def mean_of(objective: Objective, **options: Any) -> Gradient:
    """The loss and gradient of a batch, the means over its micro-batches or the targets in them."""

    def gradient(params: Params, batch: Any) -> tuple[Array, Updates]:
        return mean_gradient(objective, params, batch, weight=weight_of(batch), **options)

    return gradient


def weight_of(batch: Any) -> Callable[[Any], Scalar] | None:
    """What weighs a part of the batch: the targets that count in it; None where all do."""
    return targets_in if _MASK in batch else None


def targets_in(batch: Any) -> Any:
    """How many targets count, a float32 scalar; None where all do."""
    return jnp.sum(batch[_MASK], dtype=jnp.float32) if _MASK in batch else None


def _mean(tree: Any, weight: Any, axis: Any) -> Any:
    """The mean over a mapped axis, in which each device counts as its targets do."""
    if weight is None:
        return jax.lax.pmean(tree, axis)
    total = jax.lax.psum(weight, axis)
    share = weight / jnp.where(total > 0, total, 1.0)

    def mean(x: Array) -> Array:
        wide = accumulation_dtype(x.dtype)
        # a device that counts for nothing may hold anything
        part = jnp.where(share > 0, x.astype(wide) * share.astype(wide), jnp.zeros((), wide))
        return jax.lax.psum(part, axis).astype(x.dtype)

    return jax.tree.map(mean, tree)


def _on_part(objective: Objective, batch: Any) -> Callable[[Params], Any]:
    """The loss of the first micro-batch: enough for who estimates curvature."""
    part = jax.tree.map(lambda x: x[0], batch)
    return lambda params: objective(params, part)


def loss_of(model: Model, place: Place | None = None) -> Objective:
    """A model's loss, told where arrays are.

    Raises:
      RunError: it has none.
    """
    if model.loss is None:
        raise RunError("train: this model is here for planning only; it has no loss.")
    loss = model.loss if place is None else functools.partial(model.loss, place=place)

    def objective(params: Params, batch: Any) -> Array:
        if _SCALE not in batch:
            return loss(params, batch)
        rest = {name: x for name, x in batch.items() if name != _SCALE}
        return loss(params, rest) * batch[_SCALE]

    return objective


def find(kind: type, state: State) -> Any:
    """The outermost part of the state that is of a kind, or None."""
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind) or is_past(x))
    return next((x for x in parts if isinstance(x, kind)), None)
