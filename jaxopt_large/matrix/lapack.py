"""What is left to LAPACK, or to what accelerators have in its place, of stacked matrices: [k, m, n].

On CPUs, one matrix after the other: jaxlib before 0.11 hands the matrices of a batch to the threads of the
program and waits for them on one of these: as many batches as threads, in one program or on several
devices, wait for ever.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import custom_batching
from jaxtyping import Array, Inexact

from .._numerics import abs_square, divide
from ..tracing.by_platform import by_platform
from .norms import over_largest
from .products import adjoint, product

__all__ = ["by_cholesky", "largest_singular_values", "leading_vectors", "orthonormal", "upper_inverse"]


def orthonormal(x: Inexact[Array, "k m n"]) -> Inexact[Array, "k m n"]:
    """Columns that span the same spaces and are orthonormal; no fewer rows than columns.

    By Householder's reflections on CPUs; elsewhere by products and Cholesky factors where these hold, since
    GPUs reflect one matrix after the other.
    """
    return _each(_reflected, x, elsewhere=by_cholesky)


def by_cholesky(x: Inexact[Array, "k m n"]) -> Inexact[Array, "k m n"]:
    r"""`orthonormal` by Cholesky QR, twice: $L L^* = X^* X$, $X \leftarrow X L^{-*}$.

    Columns are brought to norm 1 first. Matrices in which they depend on each other so much that what is made
    is not orthonormal have Householder's reflections.

    Source: Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm".
    """
    identity = jnp.eye(*x.shape[1:], dtype=x.dtype)[None]
    unit, largest = over_largest(x)
    norms = jnp.sqrt(jnp.sum(abs_square(unit), axis=1, keepdims=True))
    q = divide(unit, jnp.broadcast_to(norms, x.shape))
    q = jnp.where(largest > 0, q, identity)  # what pads stacks is no case
    for _ in range(2):
        lower = jnp.linalg.cholesky(product(adjoint(q), q), symmetrize_input=False)
        q = jax.lax.linalg.triangular_solve(lower, q, lower=True, transpose_a=True, conjugate_a=True)
    error = jnp.abs(product(adjoint(q), q) - jnp.eye(x.shape[-1], dtype=x.dtype)[None])
    # the sums of the Gram matrix round too; not so of NaN, where it has no factor
    most = max(30.0, 0.5 * math.sqrt(x.shape[1])) * float(jnp.finfo(x.dtype).eps)
    holds = jnp.max(error, axis=(1, 2), keepdims=True) < most
    return jax.lax.cond(jnp.all(holds), lambda: q, lambda: jnp.where(holds, q, _reflected(x)))


def _reflected(x: Array) -> Array:
    return jnp.linalg.qr(x)[0]


def largest_singular_values(x: Inexact[Array, "k m n"]) -> Inexact[Array, " k"]:
    """The spectral norms."""
    return _each(lambda a: jnp.linalg.svd(a, compute_uv=False)[..., 0], x)


def leading_vectors(x: Inexact[Array, "k m n"], count: int) -> Inexact[Array, "k m r"]:
    """The left singular vectors of the largest singular values; the largest entry of each is positive."""

    def leading(a: Array) -> Array:
        vectors = jnp.linalg.svd(a, full_matrices=False)[0][..., :count]
        places = jnp.argmax(jnp.abs(vectors), axis=-2, keepdims=True)
        return vectors * jnp.sign(jnp.take_along_axis(vectors, places, axis=-2))

    return _each(leading, over_largest(x)[0])


def upper_inverse(x: Inexact[Array, "k n n"]) -> Inexact[Array, "k n n"]:
    """The inverses of upper triangular matrices."""

    def inverse(a: Array) -> Array:
        identity = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        return jax.scipy.linalg.solve_triangular(a, identity)

    return _each(inverse, x)


def _each(
    work: Callable[[Array], Array], x: Array, elsewhere: Callable[[Array], Array] | None = None
) -> Array:
    one = custom_batching.sequential_vmap(work)  # nor does vmap make batches of them

    def one_by_one(x: Array) -> Array:
        return one(x[0])[None] if len(x) == 1 else jax.lax.map(one, x)

    return by_platform(elsewhere or work, {"cpu": one_by_one}, x)
