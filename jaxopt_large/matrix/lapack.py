"""What is left to LAPACK, of stacked matrices: [k, m, n].

On CPUs, one matrix after the other. jaxlib before 0.11 hands the matrices of a batch to the threads of the
program and waits for them on one of these: as many batches as threads, in one program or on several
devices, wait for ever.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from ..tracing.by_platform import by_platform

__all__ = ["largest_singular_values", "orthonormal", "upper_inverse"]


def orthonormal(x: Inexact[Array, "k m n"]) -> Inexact[Array, "k m n"]:
    """Columns that span the same spaces and are orthonormal; no fewer rows than columns."""
    return _each(lambda a: jnp.linalg.qr(a)[0], x)


def largest_singular_values(x: Inexact[Array, "k m n"]) -> Inexact[Array, " k"]:
    """The spectral norms."""
    return _each(lambda a: jnp.linalg.svd(a, compute_uv=False)[..., 0], x)


def upper_inverse(x: Inexact[Array, "k n n"]) -> Inexact[Array, "k n n"]:
    """The inverses of upper triangular matrices."""

    def inverse(a: Array) -> Array:
        identity = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
        return jax.scipy.linalg.solve_triangular(a, identity)

    return _each(inverse, x)


def _each(work: Callable[[Array], Array], x: Array) -> Array:
    if len(x) == 1:
        return work(x[0])[None]
    return by_platform(work, {"cpu": lambda x: jax.lax.map(work, x)}, x)
