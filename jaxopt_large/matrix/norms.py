"""Norms of stacked matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import abs_square, divide, times


def frobenius(x: Array) -> Array:
    """[k, m, n] -> [k, 1, 1], of whatever size the entries are."""
    unit, largest = over_largest(x)
    return times(root_of_squares(unit), largest)


def over_largest(x: Array) -> tuple[Array, Array]:
    """Matrices whose largest entry is 1, and the largest entries; matrices of zeros, and of what is under the
    range of the dtype, are 0."""
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    largest = jnp.where(largest < float(jnp.finfo(largest.dtype).tiny), 0.0, largest)
    # the inverse of what is very large or very small may be out of range; a power of two rounds nothing
    middle = 2.0 ** (jnp.finfo(largest.dtype).maxexp // 2)
    shift = jnp.where(largest >= 1, 1 / middle, middle).astype(largest.dtype)
    return times(inverse(largest * shift), times(shift, x)), largest


def inverse(x: Array) -> Array:
    """1 / x, and 0 of 0.

    Compilers divide by what is one for all by its inverse, but not whatever is around.
    """
    return divide(jnp.ones_like(x), x)


def root_of_squares(x: Array) -> Array:
    """`frobenius` of matrices whose squares are in range.

    Compilers sum two axes in an order of their own, which may depend on k, and so on the devices; so here it
    is one axis at a time.
    """
    sums = jax.lax.optimization_barrier(jnp.sum(abs_square(x), axis=1, keepdims=True))
    return jnp.sqrt(jnp.sum(sums, axis=2, keepdims=True))
