"""Arithmetic that every rule shares: float32 moments, bias correction, the safe counter."""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._knob import Knob
from ._types import Scalar


def accumulation_dtype(dtype: Any) -> np.dtype:
    """float64 for float64, float32 for every other real dtype; of complex ones the same, complex."""
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(dtype)
    return np.dtype(jnp.float64 if dtype == np.float64 else jnp.float32)


def real_dtype(dtype: Any) -> np.dtype:
    """The dtype of the two parts of a complex one; a real one itself."""
    return {np.dtype(np.complex64): np.dtype(np.float32), np.dtype(np.complex128): np.dtype(np.float64)}.get(
        np.dtype(dtype), np.dtype(dtype)
    )


def is_complex(x: Any) -> bool:
    """Is an array complex? Decided when a function is traced: real arrays see no operation more."""
    return jnp.issubdtype(x.dtype, jnp.complexfloating)


def widest(*dtypes: Any) -> np.dtype:
    """The accumulation dtype that holds all of `dtypes`."""
    found = [accumulation_dtype(d) for d in dtypes]
    wide = any(real_dtype(d) == np.float64 for d in found)
    if any(d.kind == "c" for d in found):
        return np.dtype(np.complex128 if wide else np.complex64)
    return np.dtype(jnp.float64 if wide else jnp.float32)


def scalar_dtype() -> np.dtype:
    """The dtype in which per-step scalars are computed: float64 under x64, else float32."""
    return np.dtype(jax.dtypes.canonicalize_dtype(np.float64))


def as_scalar(value: Scalar) -> Float[Array, ""]:
    """A hyper-parameter as an array of shape () in the scalar dtype."""
    return (value if isinstance(value, Knob) else jnp.asarray(value)).astype(scalar_dtype())


def as_decay(value: Scalar) -> Scalar:
    r"""A decay rate that is below one, as a Python float or a float32 (float64) array.

    A caller such as `optax.inject_hyperparams` rounds hyper-parameters to the dtype of the
    parameters: 0.999 becomes 1.0 in bfloat16, and $1 - b^t$ becomes 0. An array of low precision
    is therefore read as the lower end of what rounds to it when it says 1.
    """
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Knob):
        return value
    if jnp.dtype(value.dtype).itemsize >= 4:
        return as_scalar(value)
    return jnp.minimum(as_scalar(value), 1.0 - float(jnp.finfo(value.dtype).eps) / 4)


def like(value: Scalar, x: Array) -> Scalar:
    """A hyper-parameter ready to meet `x`: Python numbers as they are, arrays in its real dtype."""
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Knob):
        return value if real_dtype(x.dtype) == np.float32 else value.astype(real_dtype(x.dtype))
    return jnp.asarray(value).astype(real_dtype(x.dtype))


def times(number: Scalar, x: Array) -> Array:
    """number * x, of a real number and an array that may be complex."""
    if is_complex(x) and not isinstance(number, numbers.Real):
        return jax.lax.complex(number * x.real, number * x.imag)
    return number * x


def over(x: Array, y: Array) -> Array:
    """x / y, of an array that may be complex and a real one."""
    if is_complex(x):
        return jax.lax.complex(x.real / y, x.imag / y)
    return x / y


def abs_square(x: Array) -> Array:
    """|x|^2, real."""
    return jnp.square(x.real) + jnp.square(x.imag) if is_complex(x) else jnp.square(x)


def square_root(decay: Scalar) -> Scalar:
    """The root of a decay, rounded once."""
    if isinstance(decay, float | Knob):
        return decay**0.5 if isinstance(decay, float) else decay.sqrt()
    return jnp.sqrt(decay)


def complement(decay: Scalar) -> Scalar:
    """1 - decay, rounded once (1 - 0.999 is off by 5e-5 when 0.999 is rounded to float32 first)."""
    return 1.0 - decay


def bias_correction(decay: Scalar, steps: Int[Array, ""]) -> Float[Array, ""]:
    r"""$1 - d^t$ without cancellation, as $-\mathrm{expm1}(t \log d)$; 1 when d = 0."""
    steps = steps.astype(scalar_dtype())
    if isinstance(decay, float):
        log_decay = as_scalar(math.log(decay)) if decay > 0 else as_scalar(-math.inf)
    elif isinstance(decay, Knob) and decay.log is not None and scalar_dtype() == np.float32:
        log_decay = decay.log.high
    else:
        log_decay = jnp.log1p(as_scalar(decay) - 1.0)
    return -jnp.expm1(steps * log_decay)


def bias_corrections(count: Int[Array, ""], *decays: Scalar) -> tuple[Float[Array, ""], ...]:
    """`bias_correction` of each decay, in the step after `count` others."""
    return tuple(bias_correction(decay, safe_increment(count)) for decay in decays)


def ema(old: Array, new: Array, decay: Scalar) -> Array:
    """decay * old + (1 - decay) * new."""
    decay = like(decay, new)
    return times(decay, old) + times(complement(decay), new)


def bounded(x: Array, terms: int = 1) -> Array:
    """Finite values limited to where a sum of `terms` squares is finite; others pass.

    For one term that is 1.8e19 in float32.
    """
    if is_complex(x):
        return jax.lax.complex(bounded(x.real, 2 * terms), bounded(x.imag, 2 * terms))
    limit = np.asarray(math.sqrt(float(jnp.finfo(x.dtype).max) / max(terms, 1)) * (1 - 1e-6), x.dtype)
    return jnp.where(jnp.isfinite(x), jax.lax.clamp(-limit, x, limit), x)


def plus(x: Array, number: Scalar) -> Array:
    """x + number; x itself, -0.0 and all, where the number is a Python 0."""
    return x if isinstance(number, numbers.Real) and number == 0 else x + like(number, x)


def divide(numerator: Array, denominator: Array, eps: Scalar = 0.0) -> Array:
    """numerator / denominator, and 0 where the denominator is 0.

    Args:
      numerator: any.
      denominator: of the same real dtype, not negative.
      eps: a summand of the denominator. A Python number that no hardware flushes to 0 spares the
        question whether the denominator is 0. Not for a bare root: XLA would multiply by `rsqrt`.
    """
    if isinstance(eps, numbers.Real) and float(eps) >= jnp.finfo(denominator.dtype).tiny:
        return over(numerator, denominator)
    zero = denominator == 0
    one = jnp.ones((), denominator.dtype)
    return jnp.where(zero, jnp.zeros((), numerator.dtype), over(numerator, jnp.where(zero, one, denominator)))


def safe_increment(count: Int[Array, ""]) -> Int[Array, ""]:
    """count + 1, staying at the largest integer instead of wrapping."""
    largest = jnp.iinfo(count.dtype).max
    return jnp.where(count < largest, count + 1, count)
