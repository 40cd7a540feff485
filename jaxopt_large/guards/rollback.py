"""Parameters and state of some steps ago, kept to be taken back."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from .._errors import check_rule, message
from .._hyperparameters import Count, checked
from .._numerics import safe_increment
from .._states import check_state, explained
from .._types import Params, Rule, State, Updates, make_rule


class _SnapshotFields(NamedTuple):
    step: Int[Array, ""]
    params: Params
    inner: State


class Snapshot(_SnapshotFields):
    """Parameters, and the state of the wrapped rule, before a step; who looks for values passes over it."""

    __slots__ = ()
    is_past: ClassVar[bool] = True


class RollbackState(NamedTuple):
    """State of `rollback`."""

    count: Int[Array, ""]  # steps taken
    inner: State  # the wrapped rule's
    older: Snapshot
    newer: Snapshot


@checked
def rollback(rule: Any, keep: Count) -> Rule:
    """Keeps parameters and state of `keep` to twice as many steps ago, for `roll_back` to take back.

    Two snapshots take turns, every `keep` steps: whenever a loop finds that training has gone wrong, there is
    one from before. They take twice the memory of parameters and state; put them into the host's memory:

        rule = jl.offload(jl.rollback(jl.zero(rule, mesh, "data"), keep=100), "older*|newer*")

    Args:
      rule: any rule; `zero` and the like belong inside.
      keep: steps between two snapshots.

    Returns:
      The rule; its `update` needs `params`; its state is `RollbackState(count, inner, older, newer)`.

    Raises:
      TypeError: rule is not a rule, or keep is no whole number.
      ValueError: keep < 1.

    >>> rule, params = jl.rollback(jl.sgd(1.0), keep=2), jnp.float32(10.0)
    >>> state = rule.init(params)
    >>> for _ in range(5):
    ...     updates, state = rule.update(jnp.float32(1.0), state, params)
    ...     params = params + updates
    >>> params, state = jl.roll_back(params, state)  # to before the third step
    >>> float(params)
    8.0
    """
    check_rule("rollback", rule)
    rule = optax.with_extra_args_support(rule)

    def init(params: Params) -> RollbackState:
        inner = rule.init(params)

        def snapshot() -> Snapshot:
            copy = jax.tree.map(jnp.copy, (params, inner))  # a buffer each, to be donated
            return Snapshot(jnp.zeros((), jnp.int32), *copy)

        return RollbackState(jnp.zeros((), jnp.int32), inner, snapshot(), snapshot())

    def update(
        updates: Updates, state: RollbackState, params: Params | None = None, **extra: Any
    ) -> tuple[Updates, RollbackState]:
        check_state("rollback", RollbackState, state)
        if params is None:
            do = "Call update(grads, state, params)"
            raise ValueError(message("rollback", "params are needed, got None", do=do))
        turn = (state.count > 0) & (state.count % keep == 0)
        now = Snapshot(state.count, params, state.inner)
        older, newer = jax.lax.cond(turn, lambda: (state.newer, now), lambda: (state.older, state.newer))
        with explained("rollback", rule.init, state.inner, updates, params):
            changes, inner = rule.update(updates, state.inner, params, **extra)
        return changes, RollbackState(safe_increment(state.count), inner, older, newer)

    return make_rule(init, update)


def roll_back(params: Params, state: State) -> tuple[Params, State]:
    """Parameters and state as they were at the older of the snapshots, to the bit.

    Args:
      params: those of the loop; they say where the others belong.
      state: of `rollback`, which is around everything else.

    Raises:
      TypeError: it is another state.

    Returns:
      (params, state); from there on training goes on with whatever gradients come, and the snapshot is kept.
    """
    check_state("rollback", RollbackState, state)
    older = state.older

    def like(x: Any, y: Any) -> Any:
        # a copy: the snapshot stays, and what is returned may be donated
        if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
            return jnp.asarray(x).astype(y.dtype)
        return jax.device_put(jnp.copy(x), y.sharding) if isinstance(y, jax.Array) else np.array(x)

    back = jax.tree.map(like, older.params, params), jax.tree.map(like, older.inner, state.inner)
    newer = jax.tree.map(like, older, state.newer)
    return back[0], RollbackState(jnp.copy(older.step), back[1], older, newer)
