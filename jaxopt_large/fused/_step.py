"""A step as users write it, traced and taken apart."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.extend.core import jaxpr_as_fun

from .._encoded import is_encoded
from .._order import Wrapper, asking_for_shares, inside
from .._states import explained
from .._types import AnyRule, Params, State, Updates
from ..passes.engine import SplitUpdate
from ..passes.split import keep
from ..tracing.update import TracedUpdate, traced_update
from ._dispatch import call


def step_of(
    rule: AnyRule, extra: dict[str, Any], shares: list[Any] | None = None
) -> Callable[..., tuple[Params, State]]:
    """(gradients, state, parameters) -> new parameters and state, as users write it.

    Args:
      rule: any.
      extra: what its update takes besides.
      shares: the sharding of each device's share of the parameters; with it new parameters are divided so.
    """
    rule = optax.with_extra_args_support(rule)

    def divided(tree: Params) -> Params:
        leaves, treedef = jax.tree.flatten(tree)
        return treedef.unflatten(jax.lax.with_sharding_constraint(leaves, shares))

    def step(grads: Updates, state: State, params: Params) -> tuple[Params, State]:
        with asking_for_shares(shares is not None), explained("apply", rule.init, state, grads, params):
            updates, new = rule.update(grads, state, params, **extra)
        with jax.numpy_dtype_promotion("standard"):
            if shares is None:
                return optax.apply_updates(params, updates), new
            return divided(optax.apply_updates(divided(params), updates)), new

    return step


_SHORT = 12  # equations per parameter: more than rules that share a function per shape have (5), fewer than
# those of optax that do not (Lion 13, Adam 18), which passes make shorter


class Step:
    """A traced step and its passes.

    Attributes:
      traced: the step.
      split: its passes.
    """

    def __init__(self, traced: TracedUpdate, args: Any):
        self.traced = traced
        _, state, params = args
        self._count = len(jax.tree.leaves(params))
        self._state = state
        self.split = SplitUpdate(
            traced, jax.tree.leaves(params), state, traced.gradients + traced.state, copied=False
        )

    @classmethod
    def taken(cls, step: Callable[..., Any], args: Any) -> "Step | None":
        """None: the step does more than its results, or they have another structure."""

        def surrounded(*args: Any) -> Any:
            with inside(Wrapper.APPLY):
                return step(*args)

        traced = traced_update(surrounded, *args, keep=keep)
        return cls(traced, args) if traced.does_as_it_returns(args[2]) else None

    @property
    def is_short(self) -> bool:
        """Is there nothing for passes to gain: no blocks, and few equations?"""
        in_blocks = any(is_encoded(x) and x.order for x in jax.tree.leaves(self._state, is_leaf=is_encoded))
        return not in_blocks and self.traced.equations <= _SHORT * self._count

    def run(self, args: Any, kernels: str) -> tuple[Params, State]:
        """New parameters and state; `kernels` as `apply` has it."""
        leaves = jax.tree.leaves(args)
        if any(isinstance(x, jax.core.Tracer) for x in leaves) and self.is_short:
            return self.traced.results(jaxpr_as_fun(self.traced.closed)(*leaves))
        return self.split.run(args, functools.partial(call, kernels=kernels), kernels)
