"""What is left to LAPACK, or to what accelerators have in its place, of stacked matrices: [k, m, n].

On CPUs, one matrix after the other: jaxlib before 0.11 hands the matrices of a batch to the threads of the
program and waits for them on one of these: as many batches as threads, in one program or on several
devices, wait for ever.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._numerics import abs_square, divide
from ..tracing.by_platform import by_platform

__all__ = ["by_cholesky", "largest_singular_values", "orthonormal", "upper_inverse"]


def orthonormal(x: Inexact[Array, "k m n"]) -> Inexact[Array, "k m n"]:
    """Columns that span the same spaces and are orthonormal; no fewer rows than columns.

    By Householder's reflections on CPUs; elsewhere by products and Cholesky factors where these hold, since
    GPUs reflect one matrix after the other.
    """
    return _each(_reflected, x, elsewhere=by_cholesky)


def by_cholesky(x: Inexact[Array, "k m n"]) -> Inexact[Array, "k m n"]:
    r"""`orthonormal` by Cholesky QR, twice: $L L^* = X^* X$, $X \leftarrow X L^{-*}$.

    Columns are brought to norm 1 first. Where they depend on each other so much that what is made is not
    orthonormal, Householder's reflections are taken for all.

    Source: Yamamoto et al. 2015, "Roundoff error analysis of the CholeskyQR2 algorithm".
    """
    norms = jnp.sqrt(jnp.sum(abs_square(x), axis=1, keepdims=True))
    q = divide(x, jnp.broadcast_to(norms, x.shape))
    for _ in range(2):
        lower = jnp.linalg.cholesky(_gram(q), symmetrize_input=False)
        q = jax.lax.linalg.triangular_solve(lower, q, lower=True, transpose_a=True, conjugate_a=True)
    error = jnp.max(jnp.abs(_gram(q) - jnp.eye(x.shape[-1], dtype=x.dtype)[None]))
    holds = error < 100 * float(jnp.finfo(x.dtype).eps)  # not so of NaN, where a Gram matrix has no factor
    return jax.lax.cond(holds, lambda: q, lambda: _reflected(x))


def _reflected(x: Array) -> Array:
    return jnp.linalg.qr(x)[0]


def _gram(x: Array) -> Array:
    return jnp.matmul(x.mT.conj(), x, precision=jax.lax.Precision.HIGHEST)


def largest_singular_values(x: Inexact[Array, "k m n"]) -> Inexact[Array, " k"]:
    """The spectral norms."""
    return _each(lambda a: jnp.linalg.svd(a, compute_uv=False)[..., 0], x)


def upper_inverse(x: Inexact[Array, "k n n"]) -> Inexact[Array, "k n n"]:
    """The inverses of upper triangular matrices."""

    def inverse(a: Array) -> Array:
        identity = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        return jax.scipy.linalg.solve_triangular(a, identity)

    return _each(inverse, x)


def _each(
    work: Callable[[Array], Array], x: Array, elsewhere: Callable[[Array], Array] | None = None
) -> Array:
    def one_by_one(x: Array) -> Array:
        return work(x[0])[None] if len(x) == 1 else jax.lax.map(work, x)

    return by_platform(elsewhere or work, {"cpu": one_by_one}, x)
