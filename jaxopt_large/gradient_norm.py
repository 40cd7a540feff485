"""The norm of the gradient that a rule is given, kept for whoever reports it."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ._global_norm import global_norm
from ._types import AnyRule, Params, Rule, State, Updates, make_rule


class WatchState(NamedTuple):
    """State of `watched`."""

    norm: Float[Array, ""]  # of the last gradient, before clipping
    inner: State


def watched(rule: AnyRule) -> Rule:
    """Keeps the norm of the gradient that the rule is given.

    Below `zero` it sees shares, so that the norm needs no gradient that is whole on one device.
    """
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> WatchState:
        return WatchState(norm=jnp.zeros((), jnp.float32), inner=rule.init(params))

    def update(
        updates: Updates, state: WatchState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, WatchState]:
        norm = global_norm(updates).astype(jnp.float32)
        updates, inner = rule.update(updates, state.inner, params, **extra)
        return updates, WatchState(norm=norm, inner=inner)

    return make_rule(init, update)
