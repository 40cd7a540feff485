"""Newton-Schulz iterations: matrices made orthogonal by products alone.

With $X_0 = G / (\\lVert G \\rVert_F + \\epsilon)$, no more rows than columns, and polynomials of it,

$$A = X X^*, \\qquad X \\leftarrow a X + (b A + c A^2) X$$

the singular vectors stay, and all singular values move towards 1. Where there are more than half as many
columns again as rows, the same polynomials of $A$ alone take fewer operations:

$$Q = a I + b A + c A^2, \\qquad P \\leftarrow Q P, \\qquad A \\leftarrow Q A Q, \\qquad X \\leftarrow P X$$

Rounding in $A$ grows by $a^2$ in each iteration, so A is made from X anew after three of them: in bfloat16,
five at a stretch lead singular values out of their bands, three do not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._numerics import accumulation_dtype, times
from .lapack import largest_singular_values
from .norms import inverse, over_largest, root_of_squares
from .products import adjoint, product

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

_DION = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

COEFFICIENTS = {
    # Jordan 2024: singular values from 1e-3 on end between 0.47 and 1.20
    "keller": Coefficients(((3.4445, -4.7750, 2.0315),)),
    # Amsel et al. 2025, arXiv:2505.16932: between 0.86 and 1.14
    "polar_express": Coefficients(_POLAR_EXPRESS, 1.02),
    # as in optax, and in the program of Dion's authors: between 0.47 and 1.15, and near 1 from 1e-2 on
    "dion": Coefficients(_DION),
}


_AT_A_STRETCH = 3


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
      eps: what is added to the norm; for "aol" and "schatten", the least square of it.
      preconditioning: one of `PRECONDITIONINGS`.
      dtype: of the products' operands; norms and sums are of `x`'s.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonalized(x.mT, coefficients, steps, eps, preconditioning, dtype).mT
    x = jax.lax.optimization_barrier(x)  # how others want it to lie orders no sum here
    # squares of what is small or large are out of range
    unit, largest = over_largest(x)
    prepare = PRECONDITIONINGS[preconditioning]
    rows = [coefficients.rows[min(i, len(coefficients.rows) - 1)] for i in range(steps)]
    made, gram = prepare(unit, eps, inverse(largest), coefficients.margin, dtype)
    iterated = _by_gram if _gram_is_cheaper(x.shape[1], x.shape[2], steps) else _directly
    return jax.lax.optimization_barrier(iterated(made, rows, gram).astype(x.dtype))


def _directly(x: Array, rows: list[tuple[float, float, float]], gram: Any) -> Array:
    wide, dtype = accumulation_dtype(x.dtype), x.dtype
    for a, b, c in rows:
        gram = _rounded(product(x, adjoint(x)), dtype) if gram is None else gram
        change = times(b, gram.astype(wide)) + times(c, product(gram, gram))
        x, gram = _rounded(times(a, x.astype(wide)) + product(_rounded(change, dtype), x), dtype), None
    return x


def _by_gram(x: Array, rows: list[tuple[float, float, float]], gram: Any) -> Array:
    wide, dtype = accumulation_dtype(x.dtype), x.dtype

    def narrow(left: Array, right: Array) -> Array:
        return product(_rounded(left, dtype), _rounded(right, dtype))

    stretches = [rows[n : n + _AT_A_STRETCH] for n in range(0, len(rows), _AT_A_STRETCH)]
    for stretch in stretches:
        gram = (narrow(x, adjoint(x)) if gram is None else gram).astype(wide)
        made = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=wide), gram.shape)
        for n, (a, b, c) in enumerate(stretch):
            change = times(b, gram) + times(c, narrow(gram, gram))
            made = times(a, made) + (narrow(change, made) if n else change)
            if n < len(stretch) - 1:
                half = times(a, gram) + narrow(change, gram)
                gram = times(a, half) + narrow(change, half)
        x, gram = _rounded(narrow(made, x), dtype), None
    return x


def flops(rows: int, columns: int, steps: int) -> float:
    """Of one matrix, in the form that is used."""
    return min(_flops_directly(rows, columns, steps), _flops_by_gram(rows, columns, steps))


def _gram_is_cheaper(rows: int, columns: int, steps: int) -> bool:
    return _flops_by_gram(rows, columns, steps) < _flops_directly(rows, columns, steps)


def _flops_directly(rows: int, columns: int, steps: int) -> float:
    few, many = sorted((rows, columns))
    return steps * (4.0 * few * few * many + 2.0 * few**3)


def _flops_by_gram(rows: int, columns: int, steps: int) -> float:
    few, many = sorted((rows, columns))
    stretches = -(-steps // _AT_A_STRETCH)
    return 4.0 * stretches * few * few * many + 2.0 * (4 * steps - 3 * stretches) * few**3


# --- the first iterate -------------------------------------------------------------------------------

_Prepared = tuple[Array, Any]  # the first iterate, and its Gram matrix where it is known
# Of matrices that were multiplied by `factor`, so that their largest entry is 1.


def _by_norm(x: Array, eps: Any, factor: Array, margin: float, dtype: Any) -> _Prepared:
    return _rounded(times(inverse(margin * root_of_squares(x) + eps * factor), x), dtype), None


def _by_spectral_norm(x: Array, eps: Any, factor: Array, margin: float, dtype: Any) -> _Prepared:
    norm = largest_singular_values(x)[:, None, None]
    return _rounded(times(inverse(margin * norm + eps * factor), x), dtype), None


def _by_rows(x: Array, eps: Any, factor: Array, margin: float, dtype: Any) -> _Prepared:
    """Almost orthogonal layers (Boissin et al. 2025, arXiv:2512.04632)."""
    gram = product(x, adjoint(x))
    sums = jnp.sum(jnp.abs(gram), axis=-1, keepdims=True)
    scale = inverse(margin * jnp.maximum(jnp.sqrt(sums), eps**0.5 * factor))
    return _rounded(times(scale, x), dtype), _rounded(times(scale * scale.mT, gram), dtype)


def _by_schatten_norm(x: Array, eps: Any, factor: Array, margin: float, dtype: Any) -> _Prepared:
    """The Schatten-4 norm (Grishina et al. 2025, arXiv:2506.10935)."""
    gram = product(x, adjoint(x))
    scale = inverse(margin * jnp.maximum(jnp.sqrt(root_of_squares(gram)), eps**0.5 * factor))
    return _rounded(times(scale, x), dtype), _rounded(times(scale * scale, gram), dtype)


PRECONDITIONINGS: dict[str, Callable[[Array, Any, Array, float, Any], _Prepared]] = {
    "frobenius": _by_norm,
    "spectral": _by_spectral_norm,
    "aol": _by_rows,
    "schatten": _by_schatten_norm,
}


def _rounded(x: Array, dtype: Any) -> Array:
    """XLA leaves out conversions to a narrow type and back where it likes; but not this."""
    if x.dtype != dtype and jnp.finfo(dtype).bits < 32:
        kind = jnp.finfo(dtype)
        x = jax.lax.reduce_precision(x, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)
    return x.astype(dtype)
