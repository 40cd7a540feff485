"""When roots and bases are computed anew: all at once, or a share of all blocks in each step."""

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

    def is_due(self, step: Int[Array, ""], numbers: Array | None, matrices: int, blocks: int) -> Any:
        """For each block of stacked matrices: is it due in this step, or is this the first step?

        Args:
          step: its number, from 1.
          numbers: those of the matrices [k], where turns are taken.
          matrices: k.
          blocks: of each matrix.
        """
        phase = jnp.zeros(matrices * blocks, jnp.int32)
        if numbers is not None:  # the same on any devices
            first = blocks * numbers.reshape(-1).astype(jnp.int32)
            phase = (first[:, None] + jnp.arange(blocks, dtype=jnp.int32)[None]).reshape(-1)
        return (step == 1) | ((step + phase) % self.every == 0)

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
