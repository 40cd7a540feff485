"""Norms of stacked matrices."""

import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import abs_square


def frobenius(x: Array) -> Array:
    """[k, m, n] -> [k, 1, 1]."""
    return jnp.sqrt(jnp.sum(abs_square(x), axis=(1, 2), keepdims=True))
