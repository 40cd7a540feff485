"""Maps between values and whole-numbered codes, for any number of codes."""

import jax.numpy as jnp
from jaxtyping import Array


def to_softsign(x: Array, most: int) -> Array:
    """[-1, 1] -> [-most, most], not yet rounded: finer near 0."""
    return most * (2 * x / (1 + jnp.abs(x)))


def from_softsign(code: Array, most: int) -> Array:
    """The inverse of `to_softsign`; exact for the largest code, as z / (2 - |z|), z = code / most, is not."""
    return code / (2 * most - jnp.abs(code))


def to_fourth_root(x: Array, most: int) -> Array:
    """[0, 1] -> the code below, from 1 to most - 1: there is none for 0."""
    return jnp.clip(jnp.floor(most * jnp.sqrt(jnp.sqrt(x))), 1, most - 1)


def from_fourth_root(code: Array, most: int) -> Array:
    """(code / most)^4."""
    return jnp.square(jnp.square(code * (1 / most)))
