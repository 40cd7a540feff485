"""Stages that see whole matrices, and the arrays that a state keeps for each."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jaxtyping import Array

from .._compat import placed
from .._errors import Problems
from .._numerics import is_complex
from .._partition import normal_spec
from .._stage import Stage
from .._state_fields import LeafField, StaticField
from .._static import is_placeholder
from ..tracing.calls import ByWindow, Opaque
from ._spreads import field_spread, spread_of, team_of
from ._transport import Team, own_part
from .plan import Matrices, MatrixLeaf, MatrixPlan
from .roles import View


@dataclasses.dataclass(frozen=True)
class MatrixStep(Opaque, ByWindow):
    """What the call that works on a rule's matrices is, for who reads a traced update.

    It gathers what it needs of the shares that devices have, and gives shares back.
    """


@dataclasses.dataclass(frozen=True)
class MatrixStage(Stage):
    """What a rule does to whole matrices, stacked: [k, rows, columns].

    `step` is (shared, updates, parameters, kept) -> (updates, kept) as in `Stage`, on stacks; the state is
    made by `matrix_stage`. Stages that follow each other run on the same devices: nothing is moved between
    them.

    Attributes:
      transposes: may rows and columns change places? Then there are no more rows than columns.
      factor: (rows, columns) -> what the update of a matrix is multiplied by.
      reads: the dtype of updates as they travel to the owners, given that of the leaf's arithmetic.
      makes: as they travel back.
    """

    transposes: bool = False
    factor: Callable[[int, int], float] | None = None
    reads: Callable[[Any], Any] = lambda dtype: dtype
    makes: Callable[[Any], Any] = lambda dtype: dtype


# --- what a state keeps -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MatrixField(LeafField):
    """A field with an array for each matrix of a leaf; `shape` is of that array, given the matrix's.

    `value` may also be a function: (the field's shape, how many matrices are in the leaves before) -> what it
    begins with.

    Attributes:
      matrices: which tells how leaves are read.
    """

    matrices: Matrices | None = None

    def begin(self, who: str, params: Any) -> Any:
        """A tree of stacks, one for each leaf."""
        if is_placeholder(params) or self.matrices is None:
            return super().begin(who, params)
        keyed, treedef = jax.tree_util.tree_flatten_with_path(params)
        plan = self.matrices.plan(who, params)
        team = team_of(who, plan)
        stacks, before = [], 0
        for leaf, (key, x) in zip(plan.leaves, keyed, strict=True):
            stacks.append(self._stack(leaf, key, x, plan, team, before))
            before += leaf.matrices
        return treedef.unflatten(stacks)

    def _stack(
        self, leaf: MatrixLeaf, key: Any, param: Array, plan: MatrixPlan, team: Team, before: int
    ) -> Array:
        like = spread_of(leaf, key, param, leaf.view, plan, team)
        spread = field_spread(self.whole(leaf), self.each(leaf.view), leaf.view, like, team)
        dtype = self.dtype_for(param)
        if callable(self.value):
            stack = self.value(spread.shape, before).astype(dtype)
        else:
            stack = jnp.full(spread.shape, self.value, dtype)
        if plan.mesh is None:
            return own_part(stack, spread)
        return placed(stack, param, NamedSharding(plan.mesh, normal_spec(spread.axes)))

    def each(self, view: View) -> tuple[int, ...]:
        """The shape of the array of one matrix."""
        shape = (view.rows, view.columns)
        return self.shape(shape) if self.shape else shape

    def whole(self, leaf: MatrixLeaf) -> tuple[int, ...]:
        """The shape of the stack for a leaf."""
        view = leaf.view
        counted = [leaf.shape[d] for d in view.units] + [view.inner] * (view.inner > 1)
        return (*counted, *self.each(view))


def of_each(
    shape: Callable[[tuple[int, ...]], tuple[int, ...]],
    value: Any = 0.0,
    dtype: Any = None,
    *,
    real: bool = False,
) -> Any:
    """`value` for each matrix, in a shape made of the matrix's."""
    return MatrixField(value, dtype, real, shape)


def numbers() -> Any:
    """Each matrix' number among all."""

    def counted(shape: tuple[int, ...], before: int) -> Array:
        return before + jnp.arange(math.prod(shape)).reshape(shape)

    return of_each(lambda matrix: (), counted)


@dataclasses.dataclass(frozen=True)
class PlanField(StaticField):
    """The field of a state that holds the plan.

    Attributes:
      matrices: which leaves are matrices.
      transposes: as `MatrixStage` has it.
      flops: likewise.
      misfit: [(rows, columns)] of all matrices -> why the rule cannot work on them; "" if it can.
      real: can it work on real numbers only?
      fields: with an array for each matrix.
    """

    matrices: Matrices
    transposes: bool
    flops: Callable[[int, int], float]
    misfit: Callable[[list[tuple[int, int]]], str]
    real: bool
    fields: tuple[tuple[str, MatrixField], ...]

    def begin(self, who: str, params: Any) -> Any:
        """The plan for parameters."""
        plan = self.matrices.plan(who, params)
        if is_placeholder(params):
            return plan
        problems, kinds = Problems(who), Problems(who)
        wrong = self.misfit([(leaf.view.rows, leaf.view.columns) for leaf in plan.leaves])
        if wrong:
            problems.add(wrong)
        for leaf, x in zip(plan.leaves, jax.tree.leaves(params), strict=True):
            if self.real and is_complex(x):
                kinds.add("works on real numbers only, got a complex leaf", at=leaf.path or "the root")
        kinds.raise_if_any(TypeError)
        problems.raise_if_any()
        return dataclasses.replace(
            plan,
            transposes=self.transposes,
            flops=tuple(self._flops_of(leaf) for leaf in plan.leaves),
            fields=tuple((name, tuple(map(field.whole, plan.leaves))) for name, field in self.fields),
        )

    def _flops_of(self, leaf: MatrixLeaf) -> float:
        view = leaf.view
        return leaf.matrices * self.flops(view.rows, view.columns)


def matrix_stage(
    step: Callable[..., tuple[Array, Any]],
    kind: Any,
    matrices: Matrices,
    *,
    transposes: bool = False,
    flops: Callable[[int, int], float] = lambda rows, columns: 0.0,
    misfit: Callable[[list[tuple[int, int]]], str] = lambda sizes: "",
    real: bool = False,
    fields: Mapping[str, Any] | None = None,
    **options: Any,
) -> MatrixStage:
    """A stage that sees whole matrices.

    Args:
      step: see `MatrixStage`.
      kind: the NamedTuple of its state, with the field `matrices` for the plan.
      matrices: which leaves are matrices.
      transposes: may rows and columns change places?
      flops: (rows, columns) -> of the work on one matrix.
      misfit: [(rows, columns)] of all matrices -> why they cannot be worked on; "" if they can.
      real: can it work on real numbers only?
      fields: the others of the state, made by `zeros`, `of_each` and their kin.
      **options: of `MatrixStage`.
    """
    own = {
        name: dataclasses.replace(f, matrices=matrices) if isinstance(f, MatrixField) else f
        for name, f in (fields or {}).items()
    }
    of_matrices = tuple((name, f) for name, f in own.items() if isinstance(f, MatrixField))
    state = kind(matrices=PlanField(matrices, transposes, flops, misfit, real, of_matrices), **own)
    return MatrixStage(step, state, transposes=transposes, **options)
