"""Steps that must not happen: not one bit of a parameter or of a rule's state changes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ._axes import reduction_axes
from ._numerics import is_complex
from ._order import Wrapper, inside
from ._types import State, Updates


def only_if(good: Bool[Array, ""], changes: Updates, inner: State, before: State) -> tuple[Updates, State]:
    """The updates and the new state, or updates that change nothing and the state as it was."""
    # x + (-0.0) is x for every x, the sign of zero included; x + 0.0 is not
    kept = jax.tree.map(lambda u: jnp.where(good, u, _nothing(u)), changes)
    return kept, jax.tree.map(lambda new, old: chosen(good, new, old), inner, before)


def _nothing(u: Array) -> Array:
    return jnp.full_like(u, complex(-0.0, -0.0) if is_complex(u) else -0.0)


def chosen(good: Array, new: Array, old: Array) -> Array:
    """The new value or the old one; of random keys too, of which neither has been used by that."""
    if not jnp.issubdtype(new.dtype, jax.dtypes.prng_key):
        return jnp.where(good, new, old)
    one, other = (jax.random.key_data(jax.random.clone(key)) for key in (new, old))
    return jax.random.wrap_key_data(jnp.where(good, one, other), impl=jax.random.key_impl(new))


@contextlib.contextmanager
def deciding(axis_name: Any) -> Iterator[None]:
    """Around the `init` of a rule whose steps may be left out; do devices decide each for itself?"""
    by_device = not reduction_axes(axis_name)  # inside a mapped axis they would not decide alike
    with (
        inside(Wrapper.LEAVES_OUT),
        inside(Wrapper.SKIP_BY_DEVICE) if by_device else contextlib.nullcontext(),
    ):
        yield
