"""Dion: momentum of low rank, what it leaves out fed back (Ahn et al. 2025, arXiv:2504.05295)."""

import math
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._errors import Range
from .._hyperparameters import (
    Axes,
    Decay,
    Glob,
    Mask,
    NonNegative,
    OneOf,
    OtherRule,
    Positive,
    Rate,
    Roles,
    StateDtype,
    checked,
)
from .._numerics import as_decay, bounded, complement, divide, like
from .._types import Rule, Updates
from ..leafwise import lift, zeros
from ..matrix.lapack import orthonormal
from ..matrix.norms import inverse, over_largest
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.products import product
from ..matrix.roles import OTHER_LEAVES
from ..matrix.stage import MatrixStep, matrix_stage, of_each
from ..tracing.calls import named_call
from ._full_matrix_rule import full_matrix_rule
from ._registry import rule
from .muon import SCALES
from .weight_decay import add_decayed_weights

__all__ = ["dion", "scale_by_dion"]

Fraction = Annotated[float, Range("a number in (0, 1]", lambda x: 0 < x <= 1, is_fixed=True)]


class ScaleByDionState(NamedTuple):
    """State of Dion."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    mu: Updates  # momentum, with what steps have left out; float32, shapes of the parameters
    basis: Updates  # [..., n, r] for a matrix [m, n] and a rank of r, float32


@checked
def scale_by_dion(
    rank: Fraction = 0.25,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    scale: Annotated[str | None, OneOf(*SCALES)] = "spectral",
    seed: int = 0,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of Dion, see `dion`; every leaf must be a matrix."""
    who = "scale_by_dion"
    decay = as_decay(beta)

    def step(shared: Any, g: Array, p: Any, kept: ScaleByDionState) -> tuple[Array, Any]:
        del shared, p
        m = kept.mu + bounded(g)
        seen = jnp.any(m != 0, axis=(1, 2), keepdims=True)
        left = jnp.where(seen, orthonormal(over_largest(product(m, kept.basis))[0]), 0.0)
        right = product(m.mT, left)
        unit, size = over_largest(right)
        norms = jnp.sqrt(jnp.sum(jnp.square(unit), axis=1, keepdims=True))
        # without eps, or it would fade with the momentum; a direction that is not there keeps its place
        basis = jnp.where(norms > 0, divide(unit, jnp.broadcast_to(norms, unit.shape)), kept.basis)
        step = divide(unit, jnp.broadcast_to(norms + eps * inverse(size), unit.shape))
        taken = product(left, right.mT)
        return product(left, step.mT), kept._replace(mu=m - like(complement(decay), m) * taken, basis=basis)

    def rank_of(rows: int, columns: int) -> int:
        return max(1, math.ceil(rank * min(rows, columns)))

    def first(shape: tuple[int, ...]) -> Array:
        return jnp.broadcast_to(jax.random.normal(jax.random.key(seed), shape[-2:], jnp.float32), shape)

    told = MatrixStep(who)  # each device draws the same
    begun = named_call(first, "dion_basis", (who, seed), told, static_argnums=(0,))
    fields = {
        "mu": zeros(mu_dtype),
        "basis": of_each(lambda matrix: (matrix[1], rank_of(*matrix)), lambda shape, before: begun(shape)),
    }
    stage = matrix_stage(
        step,
        ScaleByDionState,
        checked_matrices(who, roles, other_leaves, owners),
        flops=lambda rows, columns: 8.0 * rows * columns * rank_of(rows, columns),
        fields=fields,
        real=True,
        factor=None if scale is None else SCALES[scale],
    )
    return lift(who, stage, chained=False)


@rule
def dion(
    learning_rate: Rate,
    rank: Fraction = 0.25,
    beta: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    *,
    scale: Annotated[str, OneOf(*SCALES)] = "spectral",
    cautious: bool = False,
    seed: int = 0,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 0.3,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Dion: an orthonormal step of low rank; what it leaves out stays in the momentum.

    $$M_t = \mu_{t-1} + G_t, \qquad P_t = \mathrm{orth}(M_t Q_{t-1}), \qquad R_t = M_t^T P_t$$
    $$\mu_t = M_t - (1 - \beta) P_t R_t^T, \qquad Q_t = \mathrm{colnorm}(R_t)$$
    $$\theta_{t+1} = \theta_t - \eta_t (s P_t Q_t^T + \lambda_t \theta_t)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      rank: of $Q$, as a fraction of the shorter side.
      beta: $\beta$ in [0, 1).
      eps: what is added to the norms of columns.
      weight_decay: $\lambda$, like the learning rate; multiplied by it.
      weight_decay_mask: which matrices decay.
      mu_dtype: floating dtype of `mu`.
      scale: $s$, see `muon`.
      cautious: decay only where the step goes towards 0 anyway.
      seed: of the first $Q$, the same for matrices of a shape.
      roles: glob -> role, see `muon`, as all others.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.
      other_leaves: a glob of those.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`; `mu` and `basis` are kept for matrices.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Source: Ahn et al. 2025, arXiv:2504.05295, algorithm 1.
    """
    matrices = checked_matrices("dion", roles, other_leaves, owners)
    direction = scale_by_dion(
        rank,
        beta,
        eps,
        mu_dtype,
        scale=scale,
        seed=seed,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule("dion", matrices, learning_rate, direction, decay, other, other_ratio)
