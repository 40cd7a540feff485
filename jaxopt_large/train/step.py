"""One training step and one evaluation, as pure functions."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._types import Params, Rule, State, Updates
from ..fused.apply import apply
from ..gradient_norm import WatchState
from ..microbatches import mean_gradient
from ..models import Model, Place
from ..safety import SkipNonfiniteState
from ._errors import RunError

Objective = Callable[[Params, Any], Array]  # (parameters, batch) -> a mean over the batch
Gradient = Callable[[Params, Any], tuple[Array, Updates]]  # (parameters, batch) -> loss and gradient


class Metrics(NamedTuple):
    """What a step reports."""

    loss: Float[Array, ""]  # mean over the batch, before the step
    norm: Float[Array, ""]  # of the gradient, before clipping
    skipped: Int[Array, ""]  # steps left out so far


def make_step(
    objective: Objective,
    rule: Rule,
    *,
    gradient: Gradient | None = None,
    mean_over: str | None = None,
    average_gradients: bool = False,
) -> Callable[[Params, State, Any], tuple[Params, State, Metrics]]:
    """(params, state, batch) -> (params, state, metrics).

    Args:
      objective: the loss that is minimized.
      rule: built around `watched`.
      gradient: (params, batch) -> (loss, gradient); by default the mean of the objective's.
      mean_over: a mapped axis over which the loss is averaged.
      average_gradients: average gradients over it as well, for rules without `zero`.

    The batch's leaves have a leading axis of micro-batches, whose gradients are averaged in float32.
    """
    gradient = gradient or functools.partial(mean_gradient, objective)

    def step(params: Params, state: State, batch: Any) -> tuple[Params, State, Metrics]:
        loss, grads = gradient(params, batch)
        if mean_over is not None:
            loss = jax.lax.pmean(loss, mean_over)
        if average_gradients:
            grads = jax.lax.pmean(grads, mean_over)
        extra = {"value": loss, "obj_fn": _on_part(objective, batch)}
        params, state = apply(rule, grads, state, params, **extra)
        watch = find(WatchState, state)
        guard = find(SkipNonfiniteState, watch.inner)
        skipped = jnp.zeros((), jnp.int32) if guard is None else guard.skipped
        metrics = Metrics(loss, watch.norm, skipped)
        return params, state, metrics

    return step


def make_evaluation(
    objective: Objective, accuracy: Objective | None, *, mean_over: str | None = None
) -> Callable[[Params, Any], dict[str, Array]]:
    """(params, batch) -> means of the loss, and of the accuracy where the model has one."""

    def evaluate(params: Params, batch: Any) -> dict[str, Array]:
        means = {"validation_loss": objective(params, batch)}
        if accuracy is not None:
            means["validation_accuracy"] = accuracy(params, batch)
        return jax.lax.pmean(means, mean_over) if mean_over else means

    return evaluate


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
    return model.loss if place is None else functools.partial(model.loss, place=place)


def find(kind: type, state: State) -> Any:
    """The outermost part of the state that is of a kind, or None."""
    parts = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    return next((x for x in parts if isinstance(x, kind)), None)
