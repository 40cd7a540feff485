"""Is everything finite? Decided alike on all devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ._axes import sum_over_shards
from ._types import Updates


def all_finite(tree: Updates, axis_name: Any = None) -> Bool[Array, ""]:
    """Is every element of every leaf, on every device that holds a share, finite?"""
    bad = jnp.zeros((), jnp.int32)
    for leaf in jax.tree.leaves(tree):
        bad |= _is_bad(leaf)
    return sum_over_shards(bad, axis_name) == 0


@jax.jit
def _is_bad(leaf: Array) -> Int[Array, ""]:
    """1 where any element is not finite; traced once for all leaves of a shape."""
    return jnp.any(~jnp.isfinite(leaf)).astype(jnp.int32)
