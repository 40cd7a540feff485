"""A hyper-parameter that is an array, and as exact as a Python number.

A rule that is built with the number 0.999 computes 1 - 0.999 and log 0.999 in float64 before it rounds to
float32. From a float32 array it cannot: 0.999 is then 0.99900001. A `Knob` has what the array lacks, so that
a rule gives the same bits either way.
"""

import math
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._errors import message

_SPLIT = 4097.0  # 2^12 + 1: two halves of a float32, whose products are exact (Dekker 1971)


_UNDECIDED = message(
    "with_hyperparams",
    "a number that turns is in the state, and not known while the rule is made",
    do="Write jnp.where in the place of if, or leave the number out of with_hyperparams by functools.partial",
)


@jax.tree_util.register_pytree_node_class
class Knob:
    """The number high + low, of float32 scalars: a float32 and what it lacks.

    With Python numbers and others of its kind it computes in twice float32's precision; arrays meet `high`.

    Attributes:
      high: the number, rounded.
      low: the rest, rounded.
      log: its natural logarithm, if that is known.
    """

    __array_priority__ = 200  # before NumPy's scalars and JAX's arrays

    def __init__(self, high: Float[Array, ""], low: Float[Array, ""], log: "Knob | None" = None):
        self.high, self.low, self.log = high, low, log

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """For JAX."""
        return (self.high, self.low, self.log), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: Any) -> "Knob":
        """For JAX."""
        del aux
        made = object.__new__(cls)
        made.high, made.low, made.log = children
        return made

    # --- as an array: what checks and jax.numpy ask for

    @property
    def aval(self) -> Any:
        """As of an array."""
        return jax.typeof(self.high)

    @property
    def dtype(self) -> Any:
        """As of an array."""
        return self.high.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return self.high.shape

    @property
    def ndim(self) -> int:
        """As of an array."""
        return self.high.ndim

    @property
    def size(self) -> int:
        """As of an array."""
        return self.high.size

    def __jax_array__(self) -> Array:
        return self.high

    def astype(self, dtype: Any) -> Array:
        """As an array; float64 has all of it."""
        if np.dtype(dtype) == np.float64:
            return self.high.astype(dtype) + self.low.astype(dtype)
        return self.high.astype(dtype)

    def __repr__(self) -> str:
        return f"Knob({self.high!r})"

    # --- arithmetic

    def sqrt(self) -> "Knob":
        """The root."""
        first = jnp.sqrt(self.high)
        product, error = _two_product(first, first)
        rest = ((self.high - product) - error + self.low) / jnp.where(first > 0, 2.0 * first, 1.0)
        return _renormalized(first, rest)

    def __neg__(self) -> "Knob":
        return Knob(-self.high, -self.low)

    def __add__(self, other: Any) -> Any:
        return self._with(other, _sum, lambda x, y: x + y)

    def __radd__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: _sum(y, x), lambda x, y: y + x)

    def __sub__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: _sum(x, -y), lambda x, y: x - y)

    def __rsub__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: _sum(y, -x), lambda x, y: y - x)

    def __mul__(self, other: Any) -> Any:
        return self._with(other, _product, lambda x, y: x * y)

    def __rmul__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: _product(y, x), lambda x, y: y * x)

    def __truediv__(self, other: Any) -> Any:
        return self._with(other, _quotient, lambda x, y: x / y)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(other, lambda x, y: _quotient(y, x), lambda x, y: y / x)

    def __pow__(self, other: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(other), jnp.integer) and hasattr(other, "dtype"):
            other = other.astype(self.high.dtype)  # as with a Python number
        return self.high**other

    def __rpow__(self, other: Any) -> Any:
        return other**self.high

    def __pos__(self) -> "Knob":
        return self

    def __abs__(self) -> Any:
        return abs(self.high)

    def __bool__(self) -> bool:
        raise TypeError(_UNDECIDED)

    def __float__(self) -> float:
        raise TypeError(_UNDECIDED)

    def __int__(self) -> int:
        raise TypeError(_UNDECIDED)

    def __eq__(self, other: Any) -> Any:
        return self.high == other

    def __ne__(self, other: Any) -> Any:
        return self.high != other

    __hash__ = object.__hash__

    def __lt__(self, other: Any) -> Any:
        return self.high < other

    def __le__(self, other: Any) -> Any:
        return self.high <= other

    def __gt__(self, other: Any) -> Any:
        return self.high > other

    def __ge__(self, other: Any) -> Any:
        return self.high >= other

    def _with(self, other: Any, exactly: Any, rounded: Any) -> Any:
        if isinstance(other, Knob):
            return exactly(self, other)
        if isinstance(other, numbers.Real) and not hasattr(other, "aval"):
            high, low = halves(float(other))
            return exactly(self, Knob(jnp.asarray(high), jnp.asarray(low)))
        dtype = other.dtype if jnp.issubdtype(other.dtype, jnp.floating) else self.high.dtype
        return rounded(self.astype(dtype), other)


def halves(value: float) -> tuple[np.float32, np.float32]:
    """`high` and `low` of a Python number."""
    high = np.float32(value)
    return high, np.float32(value - float(high)) if math.isfinite(value) else np.float32(0)


def log_of(value: float) -> float:
    """The natural logarithm; of 0 minus infinity, below it none."""
    return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b, rounded, and its error (Knuth 1969)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a * b, rounded, and its error (Dekker 1971)."""

    def halves(x: Array) -> tuple[Array, Array]:
        wide = _SPLIT * x
        high = wide - (wide - x)
        return high, x - high

    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    return product, a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)


def _renormalized(high: Array, low: Array) -> Knob:
    total, rest = _two_sum(high, low)
    return Knob(total, rest)


def _sum(x: Knob, y: Knob) -> Knob:
    total, error = _two_sum(x.high, y.high)
    return _renormalized(total, error + (x.low + y.low))


def _product(x: Knob, y: Knob) -> Knob:
    product, error = _two_product(x.high, y.high)
    return _renormalized(product, error + (x.high * y.low + x.low * y.high))


def _quotient(x: Knob, y: Knob) -> Knob:
    first = x.high / y.high
    product, error = _two_product(first, y.high)
    rest = ((x.high - product) - error + x.low - first * y.low) / y.high
    return _renormalized(first, rest)
