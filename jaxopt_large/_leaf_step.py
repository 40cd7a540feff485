"""Stages on one leaf: cast once on the way in, rounded once on the way out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._compat import typed_as
from ._numerics import is_complex, real_dtype, widest
from ._parts import part_of
from ._stage import LeafStep, Stage
from ._window import Window
from .tracing.calls import ByWindow


@dataclasses.dataclass(frozen=True)
class PartStep(LeafStep, ByWindow):
    """The call of a step that knows which part of its leaf it has."""


@dataclasses.dataclass(frozen=True)
class PartSums(ByWindow):
    """The call that makes what such a part adds to the sums of its leaf."""

    who: str


class Place(NamedTuple):
    """Where a leaf is: what is known when a step is traced, and where a part begins."""

    leaf: tuple[tuple[Any, ...], tuple[int, ...] | None]  # what each stage is told, the shape of a whole leaf
    starts: tuple[Any, ...] | None

    @property
    def part(self) -> Window | None:
        whole = self.leaf[1]
        return None if whole is None or self.starts is None else Window(whole, self.starts)

    def told(self, n: int) -> dict[str, Any]:
        """What a stage is told by keyword."""
        return {} if self.leaf[0][n] is None else {"place": self.leaf[0][n]}


def leaf_step(
    stages: tuple[Stage, ...],
    rounds: bool,
    where: tuple[tuple[bool, ...], Any],
    original: Any,
    given: tuple[Any, ...],
    kept: tuple[Any, ...],
    starts: Any,
    grad: Array,
    param: Any,
    fields: Any,
    sums: Any,
) -> tuple[Array, tuple[dict[str, Array], ...]]:
    """All stages on one leaf: cast once on the way in, round once on the way out.

    Args:
      stages: run in order.
      rounds: is the update rounded? Not between segments.
      where: does a stage act on this leaf, and what is known of its place?
      original: the dtype of the gradient that the rule was given.
      given: what all leaves share, for each stage.
      kept: the state of each stage, with what all leaves share in it.
      starts: where the part of the leaf begins that is here; None for a whole leaf.
      grad: the gradient, or the update of the segment before.
      param: the parameter, if a stage reads it.
      fields: the arrays of this leaf in the state of each stage.
      sums: what the first stage has measured.
    """
    active, place = where[0], Place(where[1], starts)
    dtype, real = dtypes_of(original, grad, param, fields)
    update = grad.astype(dtype)
    wide_param = None if param is None else param.astype(dtype)
    new_fields = []
    for n, (stage, on) in enumerate(zip(stages, active, strict=True)):
        if not on:
            new_fields.append(fields[n])
            continue
        wide = widened(stage, kept[n], fields[n], dtype)
        args = (as_real(given[n], real), update, wide_param, wide)
        measured = () if n or stage.measure is None else (as_real(sums, real),)
        with part_of(place.part):
            update, new = stage.step(*args, *measured, **place.told(n))
        new_fields.append(
            {
                # statistics of a divided leaf are whole in the state, and stay so
                name: jax.tree.map(
                    lambda x, old: typed_as(rounded(x, old.dtype), old), getattr(new, name), old
                )
                for name, old in fields[n].items()
            }
        )
    return (rounded(update, out_dtype(original, param, dtype)) if rounds else update), tuple(new_fields)


def measured_leaf(
    stage: Stage, leaf: Any, given: Any, kept: Any, starts: Any, grad: Array, param: Any, fields: Any
) -> Any:
    """The sums of one leaf, float32 or wider."""
    place = Place(leaf, starts)
    dtype, real = dtypes_of(grad.dtype, grad, param, (fields,))
    wide_param = None if param is None else param.astype(dtype)
    wide = widened(stage, kept, fields, dtype)
    args = (as_real(given, real), grad.astype(dtype), wide_param, wide)
    with part_of(place.part):
        return stage.measure(*args, **place.told(0))  # type: ignore[misc]


def dtypes_of(original: Any, grad: Array, param: Any, fields: Any) -> tuple[Any, Any]:
    """In which dtype a leaf is worked on, and its real counterpart."""
    given = [original, *(x.dtype for x in jax.tree.leaves((grad, param)))]
    kept_complex = [x.dtype for x in jax.tree.leaves(fields) if is_complex(x)]
    dtype = widest(*given, *kept_complex)
    return dtype, real_dtype(dtype)


def out_dtype(original: Any, param: Any, dtype: Any) -> Any:
    """The dtype of the update: the gradient's, where that is a floating one."""
    out = original if jnp.issubdtype(original, jnp.inexact) else real_dtype(dtype)
    given = [original, *(x.dtype for x in jax.tree.leaves(param))]
    if dtype.kind == "c" and any(jnp.issubdtype(d, jnp.complexfloating) for d in given):
        return widest(out, dtype)
    return out


def widened(stage: Stage, kept: Any, fields: dict[str, Array], dtype: Any) -> Any:
    """The state of one leaf, its arrays in the leaf's dtype."""
    real = real_dtype(dtype)
    to = {name: real if stage.kinds[name].real else dtype for name in fields}
    wide = {name: jax.tree.map(lambda x, d=to[name]: x.astype(d), field) for name, field in fields.items()}
    return kept._replace(**wide) if wide else kept


def as_real(tree: Any, dtype: Any) -> Any:
    """Floating arrays in `dtype`; without jit, what all leaves share may be a Python number."""

    def one(x: Any) -> Any:
        is_floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_floating else x

    return jax.tree.map(one, tree)


def rounded(x: Array, dtype: Any) -> Array:
    """In another dtype; of complex numbers without an imaginary part, the real one."""
    if is_complex(x) and not jnp.issubdtype(dtype, jnp.complexfloating):
        x = x.real
    return x.astype(dtype)
