"""Norms of stacked matrices."""

import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import abs_square


def frobenius(x: Array) -> Array:
    """[k, m, n] -> [k, 1, 1].

    Compilers sum two axes in an order of their own, which may depend on k, and so on the devices: one axis at
    a time has an order, and the last is halved.
    """
    sums = jnp.sum(abs_square(x), axis=1, keepdims=True)
    while (n := sums.shape[2]) > 1:
        first, second = sums[:, :, : (n + 1) // 2], sums[:, :, (n + 1) // 2 :]
        sums = first + jnp.pad(second, ((0, 0), (0, 0), (0, n % 2)))
    return jnp.sqrt(sums)
