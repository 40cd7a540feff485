"""Steps with a loss or a gradient far above what they have been are left out."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from .._axes import reduction_axes
from .._errors import check_rule, message
from .._finite import all_finite
from .._global_norm import global_norm
from .._gradients import present
from .._hyperparameters import Count, OneOf, Positive, checked
from .._left_out import deciding, only_if
from .._numerics import safe_increment
from .._states import check_state, explained
from .._types import Params, Rule, State, Updates, make_rule

_FARTHEST = 1e18  # from the mean: float32 has its square


class SkipSpikesState(NamedTuple):
    """State of `skip_spikes`."""

    mean: Float[Array, ""]  # of what was measured in the steps that were taken, float32
    variance: Float[Array, ""]  # and its variance
    taken: Int[Array, ""]  # steps taken
    skipped: Int[Array, ""]  # steps left out so far
    in_a_row: Int[Array, ""]  # of them, those since the last step taken
    given_up: Bool[Array, ""]
    inner: State  # the wrapped rule's


@checked
def skip_spikes(
    rule: Any,
    sigmas: Positive = 6.0,
    *,
    window: Count = 100,
    warmup: Count = 20,
    give_up: Count = 10,
    of: Annotated[str, OneOf("norm", "loss")] = "norm",
    axis_name: Any = None,
) -> Rule:
    r"""Leaves out steps whose loss or gradient norm is far above what it has been.

    A step is left out where $x_t > \mu + k \sigma$, with mean and standard deviation over the steps that were
    taken, or where the gradient or $x_t$ is not finite. Such a step changes neither a parameter nor a leaf of
    the wrapped rule's state by one bit. All devices decide alike. With $w = 1 / \min(n, W)$ in the n-th step

    $$\sigma^2 \leftarrow (1 - w)(\sigma^2 + w (x - \mu)^2), \qquad \mu \leftarrow \mu + w (x - \mu)$$

    which are those of all steps up to a window of $W$, and of about as many of the last ones after it.

    After `give_up` steps in a row something else is wrong: from then on every update is NaN, so that a run
    that only stands still never looks like one that trains, and `given_up` is set. Take the last checkpoint,
    or see `rollback`.

    Args:
      rule: the rule to guard: everything that keeps state belongs inside.
      sigmas: $k > 0$.
      window: $W$, steps that the mean is over.
      warmup: steps before which only what is not finite is left out.
      give_up: steps in a row.
      of: "norm", the gradient's, or "loss": call `update(grads, state, params, value=loss)`.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which leaves are shares. Inside
        `zero(..., axis_name=...)` it is known and need not be said. A loss should be the mean over devices.

    Returns:
      The rule; its state is `SkipSpikesState`.

    Raises:
      TypeError: rule is not a rule; from `update`, `value` is missing.
      ValueError: a value is out of range.

    >>> rule, params = jl.skip_spikes(jl.sgd(1.0), 3.0, warmup=2), jnp.zeros(1)
    >>> state = rule.init(params)
    >>> for g in (1.0, 1.1, 1000.0):
    ...     updates, state = rule.update(jnp.array([g]), state, params)
    >>> float(updates[0]), int(state.skipped)
    (-0.0, 1)
    """
    check_rule("skip_spikes", rule)
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> SkipSpikesState:
        with deciding(axis_name):
            inner = rule.init(params)
        taken, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))
        mean, variance = (jnp.zeros((), jnp.float32) for _ in range(2))
        return SkipSpikesState(mean, variance, taken, skipped, in_a_row, jnp.zeros((), bool), inner)

    def update(
        updates: Updates, state: SkipSpikesState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SkipSpikesState]:
        check_state("skip_spikes", SkipSpikesState, state)
        updates = present(updates)
        if of == "loss" and extra.get("value") is None:
            do = "Call update(grads, state, params, value=loss)"
            raise TypeError(message("skip_spikes", "value is needed, got None", do=do))
        measured = extra["value"] if of == "loss" else global_norm(updates, axis_name=axis_name)
        x = jnp.asarray(measured).astype(jnp.float32)
        axes = reduction_axes(axis_name)
        x = jax.lax.pmean(x, axes) if of == "loss" and axes else x  # devices decide alike
        most = state.mean + jnp.asarray(sigmas, jnp.float32) * jnp.sqrt(state.variance)
        most = jnp.where(state.taken >= warmup, most, jnp.inf)
        good = all_finite(updates, axis_name) & jnp.isfinite(x) & (x <= most)
        flushes = jnp.asarray(
            extra.get("flush", False), bool
        )  # of `accumulate`: there is no gradient to judge
        good = (good | flushes) & ~state.given_up
        with explained("skip_spikes", rule.init, state.inner, updates, params):
            changes, inner = rule.update(updates, state.inner, params, **extra)
        changes, inner = only_if(good, changes, inner, state.inner)
        in_a_row = jnp.where(good, 0, state.in_a_row + 1)
        given_up = state.given_up | (in_a_row >= give_up)
        changes = _lost(given_up, changes)
        share = 1.0 / jnp.minimum(state.taken + 1, window).astype(jnp.float32)
        share = jnp.where(flushes, 0.0, share)
        off = jnp.clip(x - state.mean, -_FARTHEST, _FARTHEST)
        variance = (1.0 - share) * (state.variance + share * jnp.square(off))
        return changes, SkipSpikesState(
            mean=jnp.where(good, state.mean + share * off, state.mean),
            variance=jnp.where(good, variance, state.variance),
            taken=jnp.where(good & ~flushes, safe_increment(state.taken), state.taken),
            skipped=jnp.where(good, state.skipped, safe_increment(state.skipped)),
            in_a_row=jnp.minimum(in_a_row, give_up),
            given_up=given_up,
            inner=inner,
        )

    return make_rule(init, update)


def _lost(given_up: Array, changes: Updates) -> Updates:
    return jax.tree.map(lambda u: jnp.where(given_up, jnp.full_like(u, jnp.nan), u), changes)
