"""Newton-Schulz iterations: matrices made orthogonal by products alone.

With $X_0 = G / (\\lVert G \\rVert_F + \\epsilon)$, no more rows than columns, and polynomials of it,

$$A = X X^*, \\qquad X \\leftarrow a X + (b A + c A^2) X$$

the singular vectors stay, and all singular values move towards 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._numerics import accumulation_dtype, divide, times
from .norms import frobenius

__all__ = ["COEFFICIENTS", "PRECONDITIONINGS", "Coefficients", "flops", "orthogonalized"]


class Coefficients(NamedTuple):
    """Polynomials, one for each iteration.

    Attributes:
      rows: a, b and c of each.
      margin: what the norm is multiplied by: some polynomials diverge above 1, where rounding may lead.
    """

    rows: tuple[tuple[float, float, float], ...]
    margin: float = 1.0


_POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

COEFFICIENTS = {
    # Jordan 2024: singular values from 1e-3 on end between 0.47 and 1.20
    "keller": Coefficients(((3.4445, -4.7750, 2.0315),)),
    # Amsel et al. 2025, arXiv:2505.16932: between 0.86 and 1.14
    "polar_express": Coefficients(_POLAR_EXPRESS, 1.02),
}


def orthogonalized(
    x: Inexact[Array, "k m n"],
    coefficients: Coefficients,
    steps: int,
    eps: float,
    preconditioning: str,
    dtype: Any,
) -> Inexact[Array, "k m n"]:
    """Matrices with their singular values near 1.

    Args:
      x: any; no more rows than columns are the faster for it.
      coefficients: the last row is repeated where there are more steps.
      steps: iterations.
      eps: what is added to the norm.
      preconditioning: one of `PRECONDITIONINGS`.
      dtype: of the products' operands; norms and sums are of `x`'s.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalized(x.mT, coefficients, steps, eps, preconditioning, dtype).mT
    # squares of what is small or large are out of range
    largest = jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True)
    prepare = PRECONDITIONINGS[preconditioning]
    rows = [coefficients.rows[min(i, len(coefficients.rows) - 1)] for i in range(steps)]
    unit = _over(x, largest)
    made, gram = prepare(
        unit, lambda power: _over(jnp.full_like(largest, eps), largest**power), coefficients.margin, dtype
    )
    for row in rows:
        made = _iterated(made, row, gram)
        gram = None
    return made.astype(x.dtype)


def _iterated(x: Array, row: tuple[float, float, float], gram: Any) -> Array:
    a, b, c = row
    gram = _product(x, _adjoint(x)).astype(x.dtype) if gram is None else gram
    wide = times(b, gram.astype(_wide(x))) + times(c, _product(gram, gram))
    return (times(a, x.astype(_wide(x))) + _product(wide.astype(x.dtype), x)).astype(x.dtype)


def flops(rows: int, columns: int, steps: int) -> float:
    """Of one matrix."""
    few, many = sorted((rows, columns))
    return steps * (4.0 * few * few * many + 2.0 * few**3)


# --- the first iterate -------------------------------------------------------------------------------

_Prepared = tuple[Array, Any]  # the first iterate, and its Gram matrix where it is known
_Eps = Callable[[int], Array]  # eps as it meets powers of a matrix whose largest entry is 1


def _by_norm(x: Array, eps: _Eps, margin: float, dtype: Any) -> _Prepared:
    norm = frobenius(x)
    return _over(x, margin * norm + eps(1)).astype(dtype), None


def _by_spectral_norm(x: Array, eps: _Eps, margin: float, dtype: Any) -> _Prepared:
    norm = jnp.linalg.svd(x, compute_uv=False)[:, :1, None]
    return _over(x, margin * norm + eps(1)).astype(dtype), None


def _by_rows(x: Array, eps: _Eps, margin: float, dtype: Any) -> _Prepared:
    """Almost orthogonal layers (Boissin et al. 2025, arXiv:2512.04632)."""
    gram = _product(x, _adjoint(x))
    sums = jnp.sum(jnp.abs(gram), axis=-1, keepdims=True)
    scale = jax.lax.rsqrt(margin**2 * jnp.maximum(sums, eps(2)))
    return times(scale, x).astype(dtype), times(scale * scale.mT, gram).astype(dtype)


def _by_schatten_norm(x: Array, eps: _Eps, margin: float, dtype: Any) -> _Prepared:
    """The Schatten-4 norm (Grishina et al. 2025, arXiv:2506.10935)."""
    gram = _product(x, _adjoint(x))
    norm = frobenius(gram)
    scale = jax.lax.rsqrt(margin**2 * jnp.maximum(norm, eps(2)))
    return times(scale, x).astype(dtype), times(scale * scale, gram).astype(dtype)


PRECONDITIONINGS: dict[str, Callable[[Array, _Eps, float, Any], _Prepared]] = {
    "frobenius": _by_norm,
    "spectral": _by_spectral_norm,
    "aol": _by_rows,
    "schatten": _by_schatten_norm,
}


# --- products ----------------------------------------------------------------------------------------


def _product(x: Array, y: Array) -> Array:
    """Products of stacked matrices, with sums of at least float32."""
    exact = jnp.finfo(x.dtype).bits >= 32
    precision = jax.lax.Precision.HIGHEST if exact else None
    return jnp.matmul(x, y, precision=precision, preferred_element_type=_wide(x))


def _adjoint(x: Array) -> Array:
    return x.mT.conj() if jnp.iscomplexobj(x) else x.mT


def _wide(x: Array) -> Any:
    return accumulation_dtype(x.dtype)


def _over(x: Array, y: Array) -> Array:
    return divide(x, jnp.broadcast_to(y, x.shape))
