"""NorMuon: Muon with a second moment for each output (Li et al. 2025, arXiv:2510.05491)."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from .._hyperparameters import (
    Axes,
    Count,
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
from .._numerics import abs_square, as_decay, divide, ema, plus, times
from .._types import Rule, Updates
from ..leafwise import joined, lift
from ..matrix.norms import frobenius
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.roles import OTHER_LEAVES
from ..matrix.stage import matrix_stage, of_each
from ._full_matrix_rule import full_matrix_rule
from ._momentum import momentum
from ._registry import rule
from .muon import SCALES
from .orthogonalize import Coeffs, Preconditioning, orthogonalize
from .weight_decay import add_decayed_weights

__all__ = ["normalize_outputs", "normuon", "scale_by_normuon"]


class NormalizeOutputsState(NamedTuple):
    """State of `normalize_outputs`."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    nu: Updates  # mean square of each output's update, float32, [..., out] for a matrix [..., in, out]


@checked
def normalize_outputs(
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    *,
    factor: Callable[[int, int], float] | None = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Divides what leads to each output by its root mean square over the steps; the norm stays.

    For a matrix $O$ with $m$ inputs,

    $$\nu_j \leftarrow b_2 \nu_j + (1-b_2) \frac{1}{m} \sum_i O_{ij}^2, \qquad
      \hat O_{ij} = O_{ij} / (\sqrt{\nu_j} + \epsilon), \qquad
      u = \hat O \, \lVert O \rVert_F / \lVert \hat O \rVert_F$$

    Args:
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$.
      factor: (inputs, outputs) -> what the result is multiplied by.
      roles: glob -> role, see `muon`.
      other_leaves: a glob of leaves that are no matrices; a rule with such leaves is refused.
      owners: axes whose devices share the work.

    Raises:
      ValueError: a value is out of range; from `init`, when a leaf is no matrix.

    Source: Li et al. 2025, arXiv:2510.05491, algorithm 1.
    """
    who = "normalize_outputs"
    matrices = checked_matrices(who, roles, other_leaves, owners)
    decay = as_decay(b2)

    def step(shared: Any, u: Array, p: Any, kept: NormalizeOutputsState) -> tuple[Array, Any]:
        del shared, p
        squares = abs_square(u)
        nu = ema(kept.nu, jnp.mean(squares, axis=1), decay)
        root = jnp.broadcast_to(plus(jnp.sqrt(nu), eps)[:, None, :], u.shape)
        made = divide(u, root, eps)
        return times(divide(frobenius(u), frobenius(made)), made), kept._replace(nu=nu)

    nu = of_each(lambda shape: shape[1:], real=True)
    return lift(
        who,
        matrix_stage(step, NormalizeOutputsState, matrices, fields={"nu": nu}, factor=factor),
        chained=False,
    )


@checked
def scale_by_normuon(
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    beta: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
    preconditioning: Preconditioning = "frobenius",
    scale: Annotated[str | None, OneOf(*SCALES)] = None,
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of NorMuon, see `normuon`; every leaf must be a matrix."""
    where: dict[str, Any] = {"roles": roles, "other_leaves": other_leaves, "owners": owners}
    factor = None if scale is None else SCALES[scale]
    direction = orthogonalize(
        ns_coeffs,
        ns_steps,
        eps,
        preconditioning=preconditioning,
        ns_dtype=ns_dtype,
        **where,
    )
    last = normalize_outputs(b2, eps, factor=factor, **where)
    links = momentum(beta, nesterov, mu_dtype), direction, last
    return joined("scale_by_normuon", *links)


@rule
def normuon(
    learning_rate: Rate,
    ns_coeffs: Coeffs = "keller",
    ns_steps: Count = 5,
    beta: Decay = 0.95,
    b2: Decay = 0.95,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    *,
    nesterov: bool = True,
    preconditioning: Preconditioning = "frobenius",
    scale: Annotated[str, OneOf(*SCALES)] = "moonlight",
    cautious: bool = False,
    ns_dtype: StateDtype = None,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""NorMuon: Muon whose update is divided by a root mean square for each output.

    With $O_t$ the orthogonalized momentum of Muon, $m \times n$,

    $$\nu_{t,j} = b_2 \nu_{t-1,j} + (1-b_2) \frac{1}{m} \sum_i O_{t,ij}^2, \qquad
      \hat O_{t,ij} = O_{t,ij} / (\sqrt{\nu_{t,j}} + \epsilon)$$
    $$\theta_{t+1} = \theta_t - \eta_t \left( s \, \hat O_t \, \lVert O_t \rVert_F /
      \lVert \hat O_t \rVert_F + \lambda_t \theta_t \right)$$

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      ns_coeffs: see `muon`, as all that is not named here.
      ns_steps: iterations.
      beta: of the momentum, in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: $\epsilon \ge 0$.
      weight_decay: $\lambda$, like the learning rate; multiplied by it.
      weight_decay_mask: which matrices decay.
      mu_dtype: floating dtype of `mu`.
      nesterov: look ahead along the momentum.
      preconditioning: what comes before the first iteration.
      scale: $s$.
      cautious: decay only where the step goes towards 0 anyway.
      ns_dtype: of the products' operands.
      roles: glob -> role.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.
      other_leaves: a glob of those.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`; `mu` and `nu` are kept for matrices.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Source: Li et al. 2025, arXiv:2510.05491, algorithm 1.
    """
    matrices = checked_matrices("normuon", roles, other_leaves, owners)
    direction = scale_by_normuon(
        ns_coeffs,
        ns_steps,
        beta,
        b2,
        eps,
        mu_dtype,
        nesterov=nesterov,
        preconditioning=preconditioning,
        scale=scale,
        ns_dtype=ns_dtype,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule("normuon", matrices, learning_rate, direction, decay, other, other_ratio)
