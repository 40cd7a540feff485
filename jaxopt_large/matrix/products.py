"""Products of stacked matrices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._numerics import accumulation_dtype


def product(x: Array, y: Array) -> Array:
    """At full precision, of what is no narrower than float32; with sums of at least float32."""
    precision = jax.lax.Precision.HIGHEST if jnp.finfo(x.dtype).bits >= 32 else None
    return jnp.matmul(x, y, precision=precision, preferred_element_type=accumulation_dtype(x.dtype))


def adjoint(x: Array) -> Array:
    """Transposed, and conjugate where complex."""
    return x.mT.conj() if jnp.iscomplexobj(x) else x.mT
