"""Arithmetic that every rule shares: float32 moments, bias correction, norms, the safe counter."""

import functools
import math
import numbers
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ._axes import reduction_axes, sum_over_shards
from ._types import Scalar, Updates

_NORM_SCALE = 2.0**-64  # squares of anything a float32 holds stay finite after it
_RUN = 16  # arrays that share a traced function; XLA's fusions read no more than some dozens
# Summed as one, arrays of fewer elements compile faster (1,000 of them: by 2 s) and, above 2^14 elements, run
# slower (by up to a tenth of an Adam step). Of larger ones few are in a model.
_SMALL = 2**17


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
    return jnp.asarray(value).astype(scalar_dtype())


def as_decay(value: Scalar) -> Scalar:
    r"""A decay rate that is below one, as a Python float or a float32 (float64) array.

    A caller such as `optax.inject_hyperparams` rounds hyper-parameters to the dtype of the
    parameters: 0.999 becomes 1.0 in bfloat16, and $1 - b^t$ becomes 0. An array of low precision
    is therefore read as the lower end of what rounds to it when it says 1.
    """
    if isinstance(value, numbers.Real):
        return float(value)
    if jnp.dtype(value.dtype).itemsize >= 4:
        return as_scalar(value)
    return jnp.minimum(as_scalar(value), 1.0 - float(jnp.finfo(value.dtype).eps) / 4)


def like(value: Scalar, x: Array) -> Scalar:
    """A hyper-parameter ready to meet `x`: Python numbers as they are, arrays in its real dtype."""
    return float(value) if isinstance(value, numbers.Real) else jnp.asarray(value).astype(real_dtype(x.dtype))


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


def complement(decay: Scalar) -> Scalar:
    """1 - decay, rounded once (1 - 0.999 is off by 5e-5 when 0.999 is rounded to float32 first)."""
    return 1.0 - decay


def bias_correction(decay: Scalar, steps: Int[Array, ""]) -> Float[Array, ""]:
    r"""$1 - d^t$ without cancellation, as $-\mathrm{expm1}(t \log d)$; 1 when d = 0."""
    steps = steps.astype(scalar_dtype())
    if isinstance(decay, float):
        log_decay = as_scalar(math.log(decay)) if decay > 0 else as_scalar(-math.inf)
    else:
        log_decay = jnp.log1p(as_scalar(decay) - 1.0)
    return -jnp.expm1(steps * log_decay)


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
    limit = np.asarray(math.sqrt(float(jnp.finfo(x.dtype).max) / terms) * (1 - 1e-6), x.dtype)
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


def global_norm(updates: Updates, axis_name: Any = None) -> Float[Array, ""]:
    r"""$\sqrt{\sum_i x_i^2}$ over all leaves, in float32 (float64 when a leaf is), in one pass.

    Where it overflows, a second sum takes over, of values scaled by 2^-64. In which order leaves are
    summed, and with it the last bits, depends on their shapes and on the number of devices.

    Args:
      updates: any tree of arrays; an empty one has norm 0.
      axis_name: mapped axes over which the leaves are sharded, beside those that a surrounding
        `zero(..., axis_name=...)` has announced.
    """
    leaves = [part for x in jax.tree.leaves(updates) if jnp.size(x) for part in _real_parts(x)]
    dtype = widest(*(x.dtype for x in leaves)) if leaves else np.dtype(np.float32)

    def total(runs: list[list[Array]], scale: float, on_cpu: bool = False) -> Array:
        sums = [jaxopt_large_sum_of_squares(run, scale, dtype, on_cpu and _side_by_side(run)) for run in runs]
        return functools.reduce(operator.add, sums)

    def at_once(runs: list[list[Array]]) -> Array:
        plain, scaled = sum_over_shards((total(runs, 1.0), total(runs, _NORM_SCALE)), axis_name)
        return jnp.where(jnp.isinf(plain), jnp.sqrt(scaled) / _NORM_SCALE, jnp.sqrt(plain))

    def in_turn(runs: list[list[Array]]) -> Array:
        """On CPU each sum is a pass of its own: the second is made where it is needed."""
        plain = total(runs, 1.0, on_cpu=True)
        return jax.lax.cond(
            jnp.isinf(plain),
            lambda: jnp.sqrt(total(runs, _NORM_SCALE, on_cpu=True)) / _NORM_SCALE,
            lambda: jnp.sqrt(plain),
        )

    if not leaves:
        return jnp.zeros((), dtype)
    if reduction_axes(axis_name):  # `zero` wants to see the same work whatever the shapes
        return at_once([leaves])
    return jax.lax.platform_dependent(_runs(leaves), cpu=in_turn, default=at_once)


def _real_parts(x: Any) -> list[Array]:
    """The arrays whose squares make |x|^2."""
    x = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return [x.real, x.imag] if is_complex(x) else [x]


def _runs(leaves: list[Array]) -> list[list[Array]]:
    """Leaves of one type together, sharding and all, so that they share what is traced."""
    alike: dict[Any, list[Array]] = {}
    for x in leaves:
        alike.setdefault(jax.typeof(x), []).append(x)
    return [xs[n : n + _RUN] for xs in alike.values() for n in range(0, len(xs), _RUN)]


def _side_by_side(run: list[Array]) -> bool:
    """Is a run one sum, on CPU? Of small arrays; none may be sharded."""
    devices = max(jax.device_count(), jax.sharding.get_abstract_mesh().size)
    return run[0].size <= _SMALL and jax.default_backend() == "cpu" and devices == 1


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def jaxopt_large_sum_of_squares(run: list[Array], scale: float, dtype: Any, side_by_side: bool) -> Array:
    """Of scaled arrays; under its name `apply` keeps the call whole.

    Side by side, arrays of one shape are added before their elements are: to XLA one sum, not many.
    """
    wide = [x.astype(dtype) for x in run]
    if scale != 1:  # behind a barrier: of one element XLA would square the scale, to 0
        factor = jax.lax.optimization_barrier(jnp.asarray(scale, dtype))
        wide = [x * factor for x in wide]
    squares = [jnp.square(x) for x in wide]
    if side_by_side:
        squares = [functools.reduce(operator.add, squares)]
    return functools.reduce(operator.add, [jnp.sum(x) for x in squares])
