"""When roots and bases are computed anew: all at once, or a share of the blocks in each step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Refresh(NamedTuple):
    """When blocks are due.

    Attributes:
      every: steps from one refresh of a block to the next.
      staggered: is one block in `every` due in each step? Else all are, in every `every`-th.
    """

    every: int
    staggered: bool

    def is_due(self, number: Int[Array, ""], matrices: int, blocks: int) -> Bool[Array, " k"]:
        """For each block of stacked matrices: is it due in this step, or is this the first step?

        Args:
          number: of the step, from 1.
          matrices: in the stack.
          blocks: of each.
        """
        phase = (
            jnp.arange(blocks, dtype=jnp.int32) % self.every
            if self.staggered
            else jnp.zeros(blocks, jnp.int32)
        )
        due = (number == 1) | ((number + phase) % self.every == 0)
        return jnp.tile(due, matrices)

    def run(self, due: Bool[Array, " k"], work: Callable[[Any], Any], blocks: Any) -> Any:
        """`work` of the blocks that are due; the others stay.

        Args:
          due: for each block.
          work: from a tree of stacks [k, ...] to one like it.
          blocks: a tree of stacks.
        """
        if not self.staggered:  # all of them, or none
            return jax.lax.cond(due[0], work, lambda x: x, blocks)

        def one(pair: tuple[Array, Any]) -> Any:
            is_due, block = pair
            return jax.lax.cond(is_due, _alone(work), lambda x: x, block)

        return jax.lax.map(one, (due, blocks))


def _alone(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`work` of a single block."""
    return lambda block: jax.tree.map(lambda x: x[0], work(jax.tree.map(lambda x: x[None], block)))
