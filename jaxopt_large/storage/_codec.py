"""What one step of `stored` reads and writes: leaves of the state, and parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._axes import window_of
from .._encoded import is_encoded
from .._paths import leaf_paths
from .._types import Params
from ._choices import Choice
from .parameters import ParameterFormat, read, write
from .random import leaf_key


class Codec:
    """Leaves of the state are numbered as in `choices`, parameters as in `jax.tree.leaves`.

    Args:
      kept: how bfloat16 parameters are kept; None: like all others.
      choices: how each leaf of the state is kept.
      seed: of random rounding.
      step: the step that is written.
      like: a tree like the parameters.

    Attributes:
      owners: the parameter that each leaf of the state belongs to, or None.
      special: are bfloat16 parameters kept specially?
    """

    def __init__(
        self,
        kept: ParameterFormat | None,
        choices: tuple[Choice, ...],
        seed: Array,
        step: Array,
        like: Params,
    ):
        self._kept: Any = kept
        self._choices, self._seed, self.step = choices, seed, step
        self.special = kept is not None
        self.owners = [c.owner for c in choices]
        self._keys = [path for path, _ in jax.tree_util.tree_flatten_with_path(like)[0]]
        self._like = like

    @functools.cached_property
    def _names(self) -> list[str]:
        return leaf_paths(self._like)

    def decode(self, node: Any) -> Any:
        """A leaf of the state as the rule is to see it."""
        return node.format.decode(node) if is_encoded(node) else node

    def encode(self, j: int, old: Any, x: Array) -> Any:
        """What the rule made of leaf `j`, in the format of what it replaces."""
        if not is_encoded(old):
            return x.astype(old.dtype) if hasattr(old, "dtype") and x.dtype != old.dtype else x
        choice = self._choices[j]
        window = None if choice.owner is None else window_of(self._keys[choice.owner])
        key = leaf_key(self._seed, f"{choice.field}/{choice.path}", self.step)
        return old.format.encode(x.astype(old.dtype), key, window=window)

    def keeps(self, p: Any) -> bool:
        """Is a parameter kept specially?"""
        return self.special and p.dtype == jnp.bfloat16

    def widen(self, g: Any, p: Any) -> Any:
        """A gradient as the rule is to see it."""
        return g.astype(jnp.float32) if self.keeps(p) else g

    def read(self, p: Any, residual: Any) -> Any:
        """A parameter as the rule is to see it."""
        return read(self._kept, p, residual) if self.keeps(p) else p

    def write(self, i: int, p: Any, value: Any) -> tuple[Any, Any]:
        """The update that takes parameter `i` to a new value, and the new residual."""
        window = window_of(self._keys[i])
        key = leaf_key(self._seed, f"params/{self._names[i]}", self.step)
        return write(self._kept, p, value, key, window)
