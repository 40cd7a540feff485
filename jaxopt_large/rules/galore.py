"""GaLore: Adam on gradients that are projected to a low rank (Zhao et al. 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from .._hyperparameters import (
    Axes,
    Count,
    Decay,
    Glob,
    Mask,
    NonNegative,
    OtherRule,
    Positive,
    Rate,
    Roles,
    StateDtype,
    checked,
)
from .._numerics import as_decay, bias_correction, bounded, divide, ema, like, plus, safe_increment
from .._types import Rule, Updates
from ..leafwise import count, lift
from ..matrix.lapack import leading_vectors
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.products import product
from ..matrix.roles import OTHER_LEAVES
from ..matrix.stage import matrix_stage, of_each
from ._full_matrix_rule import full_matrix_rule
from ._registry import rule
from .weight_decay import add_decayed_weights

__all__ = ["galore", "scale_by_galore"]


class ScaleByGaloreState(NamedTuple):
    """State of GaLore, for a rank of r and a matrix [m, n] with m <= n; a taller one is turned."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    count: Int[Array, ""]  # steps taken
    projector: Updates  # orthonormal columns [..., m, r], float32
    mu: Updates  # mean projected gradient [..., r, n], float32
    nu: Updates  # its mean square [..., r, n], float32


class _Shared(NamedTuple):
    is_due: Array
    mu: Array
    nu: Array


@checked
def scale_by_galore(
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: Positive = 1.0,
    *,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of GaLore, see `galore`; every leaf must be a matrix."""
    who = "scale_by_galore"
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleByGaloreState) -> _Shared:
        n = safe_increment(kept.count)
        return _Shared(kept.count % update_proj_gap == 0, bias_correction(d1, n), bias_correction(d2, n))

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByGaloreState) -> tuple[Array, Any]:
        del p
        is_tall = g.shape[1] > g.shape[2]
        g = bounded(g, g.shape[1] * g.shape[2])
        wide = g.mT if is_tall else g
        width = rank_of(*g.shape[1:])
        projector = jax.lax.cond(shared.is_due, lambda: leading_vectors(wide, width), lambda: kept.projector)
        low = product(projector.mT, wide)
        mu, nu = ema(kept.mu, low, d1), ema(kept.nu, jnp.square(low), d2)
        direction = divide(mu / shared.mu, plus(jnp.sqrt(nu / shared.nu), eps), eps)
        made = product(projector, direction) * like(scale, g)
        return made.mT if is_tall else made, kept._replace(projector=projector, mu=mu, nu=nu)

    def rank_of(rows: int, columns: int) -> int:
        return min(rank, rows, columns)

    low = {"shape": lambda matrix: (rank_of(*matrix), max(matrix))}
    fields = {
        "count": count(),
        "projector": of_each(lambda matrix: (min(matrix), rank_of(*matrix))),
        "mu": of_each(**low, dtype=mu_dtype),
        "nu": of_each(**low, real=True),
    }
    stage = matrix_stage(
        step,
        ScaleByGaloreState,
        checked_matrices(who, roles, other_leaves, owners),
        flops=lambda rows, columns: 4.0 * rows * columns * rank_of(rows, columns),
        real=True,
        fields=fields,
        shared=shared,
    )
    return lift(who, stage, chained=False)


@rule
def galore(
    learning_rate: Rate,
    rank: Count = 128,
    update_proj_gap: Count = 200,
    scale: Positive = 1.0,
    *,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""GaLore: Adam in the gradient's leading singular vectors, for matrices; another rule for the others.

    For a matrix with no more rows than columns (a taller one is turned), every $T$ steps
    $P = U_{:, :r}$ of $g_t = U \Sigma V^T$, and in every step

    $$R_t = P^T g_t, \qquad
      \theta_{t+1} = \theta_t - \eta_t \left( \alpha P\, \mathrm{adam}(R_t) + \lambda_t \theta_t \right)$$

    The moments stay when $P$ changes, as in the paper.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      rank: $r \ge 1$; of smaller matrices their shorter side.
      update_proj_gap: $T \ge 1$, steps from one projector to the next.
      scale: $\alpha > 0$.
      b1: of `adam`.
      b2: of `adam`.
      eps: of `adam`.
      weight_decay: $\lambda$, like the learning rate.
      weight_decay_mask: which leaves decay, see `adamw`.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      roles: glob -> role of the leaves there, see `muon`.
      other: the rule for all other leaves; AdamW without decay by default.
      other_ratio: of its learning rate, where it is the default, to that of the matrices.
      other_leaves: a glob of leaves that are no matrices.
      owners: mesh axes whose devices share the matrices between them; all by default.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Differs: the shorter side is projected, as in the paper, where optax projects the longer one; `scale` is
    1 by default, as in optax, where the paper has 0.25.

    Source: Zhao et al. 2024, arXiv:2403.03507, algorithm 2.

    >>> rule, params = jl.galore(1.0, rank=1, eps=0.0), jnp.zeros((2, 3))
    >>> updates, _ = rule.update(jnp.outer(jnp.array([3.0, 4.0]), jnp.ones(3)), rule.init(params), params)
    >>> [round(x, 4) for x in updates[:, 0].tolist()]
    [-0.6, -0.8]
    """
    matrices = checked_matrices("galore", roles, other_leaves, owners)
    where: dict[str, Any] = {"roles": roles, "other_leaves": other_leaves, "owners": owners}
    direction = scale_by_galore(
        rank, update_proj_gap, scale, b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype, **where
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    return full_matrix_rule("galore", matrices, learning_rate, direction, decay, other, other_ratio)
