"""Roots and bases of symmetric factors, by products, stacked: [k, n, n].

All of it is in float32 or wider, with products of full precision: what TF32 or bfloat16 leave of a small
eigenvalue may be negative.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._compat import like_varying
from .lapack import orthonormal
from .norms import frobenius
from .products import product

_MOST = 100  # iterations of a root; condition numbers of 1e6 take 25
_RIDGE = 1e-3  # of a basis, relative to the mean value
_FIRST = 8  # iterations of a basis that nothing is known of


def inverse_root(
    a: Float[Array, "k n n"], power: float, eps: float
) -> tuple[Float[Array, "k n n"], Bool[Array, " k"]]:
    r"""$(A + \epsilon \lVert A \rVert_F I)^{-1/p}$ by the coupled Newton iteration, and whether it was found.

    With $M_0 = z A$, $H_0 = z^{1/p} I$, $z = (1 + p) / (2 \lVert A \rVert_F)$,

    $$T = \frac{(p + 1) I - M}{p}, \qquad M \leftarrow T^p M, \qquad H \leftarrow H T$$

    Args:
      a: symmetric, not negative.
      power: $p$, a whole number.
      eps: $\epsilon$, what is added to the diagonal, relative to the norm; the dtype's own at least: under
        that rounding alone makes eigenvalues negative.

    Returns:
      The roots, and for each whether it is one: finite, with a small residual. A factor of zeros has none.

    Source: Guo and Higham 2006, "A Schur-Newton method for the matrix p-th root and its inverse", section 3.
    """
    p, ridge = int(power), jnp.maximum(jnp.asarray(eps, a.dtype), jnp.finfo(a.dtype).eps)
    identity = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    norm = frobenius(a)
    known = norm > 0
    safe = jnp.where(known, norm, 1.0)
    z = (1.0 + p) / (2.0 * safe)
    m = z * (a + ridge * safe * identity)
    h = jnp.power(z, 1.0 / p) * identity
    tolerance = 50 * float(jnp.finfo(a.dtype).eps)

    def error(m: Array) -> Array:
        return jnp.max(jnp.abs(m - identity), axis=(1, 2))

    def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        count, m, h, before, active = carry
        t = ((p + 1.0) * identity - m) / p
        new_m, new_h = product(_powered(t, p), m), product(h, t)
        now = error(new_m)
        better = active & (now < before)  # what has been found, or gets worse, stays
        pick, now = better[:, None, None], jnp.where(better, now, before)
        return (
            count + 1,
            jnp.where(pick, new_m, m),
            jnp.where(pick, new_h, h),
            now,
            better & (now > tolerance),
        )

    def goes_on(carry: tuple[Array, ...]) -> Array:
        return (carry[0] < _MOST) & jnp.any(carry[-1])

    start = jnp.int32(0), m, h, jnp.full_like(norm[:, 0, 0], jnp.finfo(a.dtype).max), known[:, 0, 0]
    _, _, h, residual, _ = jax.lax.while_loop(goes_on, step, start)
    found = (residual < 0.1) & jnp.all(jnp.isfinite(h), axis=(1, 2)) & known[:, 0, 0]
    return h, found


def _powered(t: Array, p: int) -> Array:
    """t^p, by squares."""
    made, square = None, t
    while p:
        if p & 1:
            made = square if made is None else product(made, square)
        p >>= 1
        square = product(square, square) if p else square
    return made  # type: ignore[return-value]


def refreshed_basis(a: Float[Array, "k n n"], q: Float[Array, "k n n"]) -> Float[Array, "k n n"]:
    """One power iteration of a basis, orthogonal again: closer to the eigenvectors of `a`.

    What is added to the diagonal turns none of them; directions without a value keep their place by it, where
    else rounding would choose one.
    """
    n = a.shape[-1]
    mean = jnp.trace(a, axis1=1, axis2=2)[:, None, None] / n
    ridge = _RIDGE * jnp.where(mean > 0, mean, 1.0)
    return orthonormal(product(a, q) + ridge * q)


def first_basis(a: Float[Array, "k n n"]) -> Float[Array, "k n n"]:
    """A basis near the eigenvectors of `a`, the largest first."""
    q = like_varying(jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape), a)
    return jax.lax.fori_loop(0, _FIRST, lambda _, q: refreshed_basis(a, q), q)


def values_along(a: Float[Array, "k n n"], q: Float[Array, "k n n"]) -> Float[Array, "k n"]:
    """$\\mathrm{diag}(Q^T A Q)$: the values that the vectors of a basis have."""
    return jnp.sum(q * product(a, q), axis=1)
