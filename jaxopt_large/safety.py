"""Guards around a rule: clipping by the global norm, and steps that must not happen."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from ._errors import check_rule
from ._finite import all_finite
from ._global_norm import global_norm
from ._gradients import present
from ._hyperparameters import Positive, checked
from ._left_out import deciding, only_if
from ._numerics import as_scalar, is_complex, safe_increment, times, widest
from ._states import check_state, explained
from ._types import AnyRule, Params, Rule, State, Updates, make_rule


class SkipNonfiniteState(NamedTuple):
    """State of `skip_nonfinite`."""

    skipped: Int[Array, ""]  # steps skipped so far
    inner: State  # the wrapped rule's


@checked
def clip_by_global_norm(max_norm: Positive, axis_name: Any = None) -> Rule:
    r"""Scales the whole gradient down to a largest norm.

    $$u = g \cdot \min(1, c / \|g\|), \qquad \|g\|^2 = \sum_{\text{all leaves}} g_i^2$$

    The norm is one pass in float32 (float64 when a leaf is), also for bfloat16 and float16 leaves,
    and does not overflow for values that float32 holds. When it is not finite every update is NaN,
    so that a broken step never looks like a healthy one; `skip_nonfinite` drops such steps.

    Args:
      max_norm: $c > 0$, a number or an array of shape ().
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which the leaves are sharded.
        Inside `zero(..., axis_name=...)` it is known and need not be said.

    Returns:
      The rule; it keeps no state.

    Raises:
      ValueError: max_norm is not positive.
      TypeError: max_norm is not a number.

    Source: Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1.

    >>> rule = jl.clip_by_global_norm(1.0)
    >>> updates, _ = rule.update({"w": jnp.array([3.0, 4.0])}, rule.init(None))
    >>> [round(x, 4) for x in updates["w"].tolist()]
    [0.6, 0.8]
    """

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Updates, state: State, params: Any = None, **extra: Any) -> tuple[Updates, State]:
        del params, extra
        updates = present(updates)
        norm = global_norm(updates, axis_name=axis_name)
        limit = as_scalar(max_norm).astype(norm.dtype)
        factor = jnp.where(norm > limit, limit / norm, jnp.ones((), norm.dtype))
        factor = jnp.where(jnp.isfinite(norm), factor, jnp.nan)

        def scale(g: Array) -> Array:
            g = g if isinstance(g, jax.Array) else jnp.asarray(g)
            if is_complex(g):
                return times(factor, g.astype(widest(norm.dtype, g.dtype))).astype(g.dtype)
            scaled = g.astype(norm.dtype) * factor
            return scaled.astype(g.dtype) if jnp.issubdtype(g.dtype, jnp.floating) else scaled

        return jax.tree.map(scale, updates), state

    return make_rule(init, update)


def skip_nonfinite(rule: AnyRule, *, axis_name: Any = None) -> Rule:
    """Leaves out every step whose gradient holds a NaN or an infinity.

    Such a step changes neither a parameter nor a leaf of the wrapped rule's state by one bit, and is
    counted in `skipped`. All devices decide alike.

    Args:
      rule: the rule to guard: everything that keeps state belongs inside.
      axis_name: inside `shard_map` or `pmap`, the axis or axes over which gradients differ between
        devices. Inside `zero(..., axis_name=...)` it is known and need not be said.

    Returns:
      The rule; its state is `SkipNonfiniteState(skipped, inner)`.

    Raises:
      TypeError: rule is not a rule.

    >>> rule = jl.skip_nonfinite(jl.sgd(0.1, momentum=0.9))
    >>> params = jnp.float32(1.0)
    >>> updates, state = rule.update(jnp.float32("nan"), rule.init(params), params)
    >>> float(params + updates), int(state.skipped)
    (1.0, 1)
    """
    check_rule("skip_nonfinite", rule)
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> SkipNonfiniteState:
        with deciding(axis_name):
            inner = rule.init(params)
        return SkipNonfiniteState(skipped=jnp.zeros((), jnp.int32), inner=inner)

    def update(
        updates: Updates, state: SkipNonfiniteState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, SkipNonfiniteState]:
        check_state("skip_nonfinite", SkipNonfiniteState, state)
        updates = present(updates)
        good = all_finite(updates, axis_name)
        with explained("skip_nonfinite", rule.init, state.inner, updates, params):
            new_updates, inner = rule.update(updates, state.inner, params, **extra)
        new_updates, inner = only_if(good, new_updates, inner, state.inner)
        skipped = jnp.where(good, state.skipped, safe_increment(state.skipped))
        return new_updates, SkipNonfiniteState(skipped=skipped, inner=inner)

    return make_rule(init, update)
