"""Scion: steps of a given spectral norm, within a ball of it (Pethick et al. 2025, arXiv:2502.07529)."""

from typing import Any

from jaxtyping import Array

from .._hyperparameters import (
    Axes,
    Count,
    Decay,
    Glob,
    NonNegative,
    OtherRule,
    Positive,
    Rate,
    Roles,
    StateDtype,
    checked,
)
from .._numerics import like, times
from .._types import Rule
from ..leafwise import Stage, joined, lift
from ..matrix.plan import checked_matrices
from ..matrix.roles import OTHER_LEAVES
from ._full_matrix_rule import full_matrix_rule
from ._momentum import momentum
from ._registry import rule
from .muon import SCALES
from .orthogonalize import Coeffs, Preconditioning, orthogonalize
from .weight_decay import add_decayed_weights

__all__ = ["scale_by_scion", "scion"]


@checked
def scale_by_scion(
    radius: Positive = 50.0,
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    beta: Decay = 0.9,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    preconditioning: Preconditioning = "frobenius",
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of Scion, see `scion`; every leaf must be a matrix."""

    def step(shared: Any, u: Array, p: Any, kept: Any) -> tuple[Array, Any]:
        del shared, p
        return times(like(radius, u), u), kept

    direction = orthogonalize(
        ns_coeffs,
        ns_steps,
        eps,
        preconditioning=preconditioning,
        factor=SCALES["spectral"],
        ns_dtype=ns_dtype,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    outer = lift("scale_by_radius", Stage(step), chained=False)
    return joined("scale_by_scion", momentum(beta, False, mu_dtype), direction, outer)


@rule
def scion(
    learning_rate: Rate,
    radius: Positive = 50.0,
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    beta: Decay = 0.9,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    constrained: bool = True,
    preconditioning: Preconditioning = "frobenius",
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Scion: towards the corner of a spectral ball that the momentum points to, for matrices.

    $$\mu_t = \beta \mu_{t-1} + (1-\beta) g_t, \qquad
      \theta_{t+1} = (1 - \eta_t) \theta_t - \eta_t \rho \sqrt{n/m} \, \mathrm{orth}(\mu_t)$$

    for a matrix of $m$ inputs and $n$ outputs; without `constrained`, $\theta_t$ is not shrunk. `orth` is by
    Newton-Schulz iterations, as in `muon`. Weights that begin in the ball of radius $\rho$ stay there.

    Args:
      learning_rate: $\eta$ in [0, 1], an array of shape (), or a schedule.
      radius: $\rho$.
      ns_coeffs: see `muon`, as all others.
      ns_steps: iterations.
      beta: $\beta$ in [0, 1).
      eps: what is added to the norm.
      mu_dtype: floating dtype of `mu`.
      constrained: stay in the ball.
      preconditioning: what comes before the first iteration.
      ns_dtype: of the products' operands.
      roles: glob -> role.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one times the radius.
      other_leaves: a glob of those.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`; `mu` is kept for matrices.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Source: Pethick et al. 2025, arXiv:2502.07529, algorithms 1 and 2.
    """
    matrices = checked_matrices("scion", roles, other_leaves, owners)
    direction = scale_by_scion(
        radius,
        ns_coeffs,
        ns_steps,
        beta,
        eps,
        mu_dtype,
        preconditioning=preconditioning,
        ns_dtype=ns_dtype,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(1.0 if constrained else 0.0)
    ratio = other_ratio * radius
    return full_matrix_rule("scion", matrices, learning_rate, direction, decay, other, ratio)
