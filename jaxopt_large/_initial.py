"""What a rule's fields begin with, and in which dtype."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ._errors import message
from ._numerics import accumulation_dtype, real_dtype


@dataclasses.dataclass(frozen=True)
class Initial:
    """A parameter's initial value of a field: `value` everywhere.

    Attributes:
      value: a number.
      dtype: by default the accumulation dtype. A field of complex parameters stays complex.
      real: whether the field is real even where parameters are complex, as a mean of squares is.
    """

    value: Any
    dtype: Any = None
    real: bool = False

    def __call__(self, param: Array) -> Array:
        dtype = accumulation_dtype(param.dtype)
        if self.real:
            dtype = real_dtype(dtype)
        if self.dtype is not None and not (
            dtype.kind == "c" and real_dtype(self.dtype) == jnp.dtype(self.dtype)
        ):
            dtype = jnp.dtype(self.dtype)
        return jnp.full_like(param, self.value, dtype=dtype)


def zeros(dtype: Any = None, *, real: bool = False) -> Initial:
    """Initial value: zeros in the accumulation dtype, or in `dtype`."""
    return Initial(0.0, dtype, real)


def constant(value: Any, dtype: Any = None, *, real: bool = False) -> Initial:
    """Initial value: `value` everywhere, in the accumulation dtype, or in `dtype`."""
    return Initial(value, dtype, real)


def check_state_dtype(who: str, name: str, dtype: Any) -> None:
    """Raises unless `dtype` is None or a floating dtype (an integer one would truncate to 0)."""
    if dtype is None:
        return
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or not jnp.issubdtype(known, jnp.inexact):
        raise ValueError(
            message(
                who,
                f"{name} is not a floating dtype, got {dtype if known is None else known.name!r}",
                allowed="None, bfloat16, float16, float32 or float64, or a complex dtype",
            )
        )
