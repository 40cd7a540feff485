"""The fields of a stage's state: what each begins with, in which shape and dtype, and how it goes on."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._axes import window_of
from ._numerics import accumulation_dtype, real_dtype, safe_increment, scalar_dtype
from ._paths import leaf_paths


@dataclasses.dataclass(frozen=True)
class LeafField:
    """A field that is a tree like the parameters, with one array for each.

    Attributes:
      value: everywhere, at the beginning; None: the parameter's own values.
      dtype: by default the accumulation dtype. A field of complex parameters stays complex.
      real: whether the field is real even where parameters are complex, as a mean of squares is.
      shape: the parameter's shape -> the field's; by default the same. Of a tuple of shapes the field is a
        tuple of arrays.
      by_path: whether `shape` is given the parameter's path too.
    """

    value: Any
    dtype: Any = None
    real: bool = False
    shape: Callable[..., Any] | None = None
    by_path: bool = False

    def begin(self, who: str, params: Any) -> Any:
        """The field of a rule's state: a tree like the parameters."""
        del who
        if self.shape is None:
            return jax.tree.map(self.initial, params)
        keyed, treedef = jax.tree_util.tree_flatten_with_path(params)
        paths = leaf_paths(params) if self.by_path else [""] * len(keyed)
        made = [self._shaped(x, key, path) for (key, x), path in zip(keyed, paths, strict=True)]
        return treedef.unflatten(made)

    def dtype_for(self, param: Array) -> Any:
        """The dtype of a parameter's array."""
        dtype = accumulation_dtype(param.dtype)
        if self.real:
            dtype = real_dtype(dtype)
        if self.dtype is None or (dtype.kind == "c" and real_dtype(self.dtype) == jnp.dtype(self.dtype)):
            return dtype
        return jnp.dtype(self.dtype)

    def initial(self, param: Array) -> Array:
        """A parameter's array."""
        dtype = self.dtype_for(param)
        if self.value is None:
            return jnp.array(param, dtype, copy=True)  # the step may take either's memory
        return jnp.full_like(param, self.value, dtype=dtype)

    def _shaped(self, param: Array, key: Any, path: str) -> Any:
        """A parameter's array in a shape of its own: that of the whole parameter, where this is a part."""
        window = window_of(key)
        whole = tuple(param.shape if window is None else window.whole)
        shape: Any = self.shape(whole, path) if self.by_path else self.shape(whole)  # type: ignore[misc]
        if shape and isinstance(shape[0], tuple):
            return tuple(self._filled(each, param, whole) for each in shape)
        return self._filled(shape, param, whole)

    def _filled(self, shape: tuple[int, ...], param: Array, whole: tuple[int, ...]) -> Array:
        if shape == whole:  # divided as the parameter is
            return jnp.full_like(param, self.value, dtype=self.dtype_for(param))
        return jnp.full(shape, self.value, self.dtype_for(param))


@dataclasses.dataclass(frozen=True)
class SharedField:
    """A field that is one array for all parameters.

    Attributes:
      initial: what it begins with, when called.
      next: from the field and the whole state, what it is after a step that says nothing else; by default
        the same.
    """

    initial: Callable[[], Array]
    next: Callable[[Array, Any], Array] = lambda x, state: x

    def begin(self, who: str, params: Any) -> Array:
        """The field, whatever the parameters."""
        del who, params
        return self.initial()


class StaticField:
    """Base of a field that is a static node: it is made of the parameters, and stays.

    Attributes:
      is_needed: is a state without it another rule's?
    """

    is_needed: ClassVar[bool] = True

    def begin(self, who: str, params: Any) -> Any:
        """The node of a rule's state."""
        raise NotImplementedError


def zeros(dtype: Any = None, *, real: bool = False) -> Any:
    """Zeros like each parameter, in the accumulation dtype, or in `dtype`."""
    return LeafField(0.0, dtype, real)


def constant(value: Any, dtype: Any = None, *, real: bool = False) -> Any:
    """`value` like each parameter, in the accumulation dtype, or in `dtype`."""
    return LeafField(value, dtype, real)


def first_parameters(dtype: Any = None) -> Any:
    """The parameters as they are at the beginning."""
    return LeafField(None, dtype)


def shaped(
    shape: Callable[..., tuple[int, ...] | tuple[tuple[int, ...], ...]],
    value: Any = 0.0,
    dtype: Any = None,
    *,
    real: bool = False,
    by_path: bool = False,
) -> Any:
    """`value` in a shape made of each parameter's: row and column statistics, say.

    Inside a mapped axis each device has the whole of it: it is small, and of the whole parameter.

    >>> shaped(lambda shape: shape[:-1]).begin("rule", jnp.ones((4, 8))).shape
    (4,)
    """
    return LeafField(value, dtype, real, shape, by_path)


def count() -> Any:
    """Steps taken: an int32 that stays at the largest instead of wrapping."""
    return SharedField(lambda: jnp.zeros((), jnp.int32), lambda x, state: safe_increment(x))


def is_first_step() -> Any:
    """A boolean that is true in the first step."""
    return SharedField(lambda: jnp.ones((), bool), lambda x, state: jnp.zeros_like(x))


def shared(value: Any, dtype: Any = None, *, next: Callable[[Array, Any], Array] | None = None) -> Any:
    """A number for all parameters, which `Stage.combine` moves, or `next` from itself and the state.

    By default it is float32, float64 under x64.
    """
    return SharedField(lambda: jnp.asarray(value, dtype or scalar_dtype()), next or (lambda x, state: x))


def random_key(seed: Any) -> Any:
    """A random key, another one after each step; a leaf's step sees one of its own.

    `seed` is a whole number or a key; one of the old kind, two numbers, is made a new one.
    """

    def start() -> Array:
        if not hasattr(seed, "dtype") or (
            not seed.ndim and not jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)
        ):
            return jax.random.key(seed)
        if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
            return jax.random.clone(seed)
        return jax.random.wrap_key_data(seed)

    return SharedField(start)
