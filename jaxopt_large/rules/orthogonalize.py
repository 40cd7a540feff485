"""Matrices made orthogonal: the singular vectors stay, the singular values become 1."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._errors import Problems
from .._hyperparameters import Axes, Count, Glob, NonNegative, OneOf, Roles, StateDtype, checked
from .._numerics import times
from .._types import Rule
from ..leafwise import lift
from ..matrix.newton_schulz import COEFFICIENTS, PRECONDITIONINGS, Coefficients, flops, orthogonalized
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.roles import OTHER_LEAVES
from ..matrix.stage import matrix_stage

__all__ = ["orthogonalize"]


class _Coeffs:
    """Coefficients of iterations: three numbers, several times three, or a name."""

    plain = str | list[float] | list[list[float]]

    def check(self, name: str, value: Any, types: Problems, values: Problems) -> None:
        allowed = f"three numbers, three for each iteration, or one of {', '.join(map(repr, COEFFICIENTS))}"
        if isinstance(value, str):
            if value not in COEFFICIENTS:
                values.add(f"{name} is unknown, got {value!r}", allowed=allowed)
            return
        try:
            shape = np.asarray(value, float).shape
        except (TypeError, ValueError):
            shape = ()
        if (
            len(shape) not in (1, 2)
            or shape[-1] != 3
            or 0 in shape
            or not np.isfinite(np.asarray(value, float)).all()
        ):
            types.add(f"{name} are no coefficients, got {value!r}", allowed=allowed)


Coeffs: TypeAlias = Annotated[Any, _Coeffs()]


Preconditioning: TypeAlias = Annotated[str, OneOf(*PRECONDITIONINGS)]


class OrthogonalizeState(NamedTuple):
    """State of `orthogonalize`: none but the plan."""

    matrices: MatrixPlan  # how leaves are read, and who works on them


@checked
def orthogonalize(
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    eps: NonNegative = 1e-8,
    *,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    factor: Callable[[int, int], float] | None = None,
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Makes matrices orthogonal, nearly, by Newton-Schulz iterations.

    $$X_0 = G / (\lVert G \rVert_F + \epsilon), \qquad
      X_{k+1} = a X_k + (b A + c A^2) X_k, \quad A = X_k X_k^*$$

    Args:
      ns_coeffs: see `muon`, as all others.
      ns_steps: iterations.
      eps: $\epsilon \ge 0$.
      adaptive: multiply by the dual norm $\langle G, X_K \rangle$.
      preconditioning: what comes before the first iteration.
      factor: (inputs, outputs) -> what the result is multiplied by.
      ns_dtype: of the products' operands.
      roles: glob -> role.
      other_leaves: a glob of leaves that are no matrices; a rule with such leaves is refused.
      owners: axes whose devices share the work.

    Raises:
      ValueError: a value is out of range; from `init`, when a leaf is no matrix.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".

    >>> rule = jl.orthogonalize("polar_express")
    >>> updates, _ = rule.update(jnp.diag(jnp.array([3.0, 0.5])), rule.init(jnp.zeros((2, 2))))
    >>> bool(abs(jnp.linalg.svd(updates, compute_uv=False) - 1).max() < 0.15)
    True
    """
    who = "orthogonalize"
    coefficients = _coefficients(ns_coeffs)

    def step(shared: Any, u: Array, p: Any, kept: Any) -> tuple[Array, Any]:
        del shared, p
        made = orthogonalized(u, coefficients, ns_steps, eps, preconditioning, working(u.dtype))
        if adaptive:
            made = times(jnp.sum((u.conj() * made).real, axis=(1, 2), keepdims=True), made)
        return made, kept

    def working(dtype: Any) -> Any:
        """The dtype of the products: half precision by default, where the leaf is not float64."""
        if ns_dtype is None:
            return jnp.bfloat16 if np.dtype(dtype) == np.float32 else dtype
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            return ns_dtype
        wide = np.dtype(ns_dtype) in (np.float64, np.complex128)  # complex numbers have no half precision
        return jnp.complex128 if wide else jnp.complex64

    def carried(dtype: Any) -> Any:
        """The dtype in which matrices travel: of half precision only the one with float32's range."""
        return jnp.bfloat16 if np.dtype(working(dtype)) == jnp.bfloat16 else dtype

    stage = matrix_stage(
        step,
        OrthogonalizeState,
        checked_matrices(who, roles, other_leaves, owners),
        transposes=True,
        flops=lambda rows, columns: flops(rows, columns, ns_steps),
        factor=factor,
        reads=carried,
        makes=(lambda dtype: dtype) if adaptive else carried,
    )
    return lift(who, stage, chained=False)


def _coefficients(given: Any) -> Coefficients:
    if isinstance(given, str):
        return COEFFICIENTS[given]
    rows = np.atleast_2d(np.asarray(given, float))
    return Coefficients(tuple((float(a), float(b), float(c)) for a, b, c in rows))
