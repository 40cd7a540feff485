"""APOLLO: a rate for each channel, from Adam on a random projection (Zhu et al. 2024)."""

from typing import Annotated, Any, NamedTuple

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
    OneOf,
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
from ..matrix.norms import frobenius
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.products import product
from ..matrix.roles import OTHER_LEAVES
from ..matrix.stage import matrix_stage, of_each
from ._full_matrix_rule import full_matrix_rule
from ._registry import rule
from .weight_decay import add_decayed_weights

__all__ = ["apollo", "scale_by_apollo"]

_PER = ("channel", "tensor")


class ScaleByApolloState(NamedTuple):
    """State of APOLLO, for a rank of r and a matrix [m, n] with m <= n; a taller one is turned."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean projected gradient [..., r, n], float32
    nu: Updates  # its mean square [..., r, n], float32
    norm: Updates  # of the update before [...], float32


class _Shared(NamedTuple):
    is_first: Array
    turn: Array  # how many projections there were before
    mu: Array
    nu: Array


@checked
def scale_by_apollo(
    rank: Count = 256,
    update_proj_gap: Count = 200,
    scale: Positive = 1.0,
    *,
    per: Annotated[str, OneOf(*_PER)] = "channel",
    growth: Positive | None = 1.01,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    seed: int = 0,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of APOLLO, see `apollo`; every leaf must be a matrix."""
    who = "scale_by_apollo"
    d1, d2 = as_decay(b1), as_decay(b2)

    def shared(kept: ScaleByApolloState) -> _Shared:
        n = safe_increment(kept.count)
        corrections = bias_correction(d1, n), bias_correction(d2, n)
        return _Shared(kept.count == 0, kept.count // update_proj_gap, *corrections)

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByApolloState) -> tuple[Array, Any]:
        del p
        is_tall = g.shape[1] > g.shape[2]
        g = bounded(g, g.shape[1] * g.shape[2])
        wide = g.mT if is_tall else g
        low = product(
            projection(seed, shared.turn, min(g.shape[1:]), rank_of(*g.shape[1:]), g.dtype)[None], wide
        )
        mu, nu = ema(kept.mu, low, d1), ema(kept.nu, jnp.square(low), d2)
        steps = divide(mu / shared.mu, plus(jnp.sqrt(nu / shared.nu), eps), eps)
        if per == "channel":
            norms = [jnp.sqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True)) for x in (steps, low)]
        else:
            norms = [frobenius(x) for x in (steps, low)]
        made = wide * divide(*norms) * like(scale, g)
        size = frobenius(made)
        if growth is not None:
            before = kept.norm[:, None, None]
            limit = jnp.where(shared.is_first | (before == 0), size, like(growth, g) * before)
            made = made * divide(jnp.minimum(size, limit), size)
            size = jnp.minimum(size, limit)
        return made.mT if is_tall else made, kept._replace(mu=mu, nu=nu, norm=size[:, 0, 0])

    def rank_of(rows: int, columns: int) -> int:
        return min(rank, rows, columns)

    low = {"shape": lambda matrix: (rank_of(*matrix), max(matrix))}
    fields = {
        "count": count(),
        "mu": of_each(**low, dtype=mu_dtype),
        "nu": of_each(**low, real=True),
        "norm": of_each(lambda matrix: (), real=True),
    }
    stage = matrix_stage(
        step,
        ScaleByApolloState,
        checked_matrices(who, roles, other_leaves, owners),
        flops=lambda rows, columns: 2.0 * rows * columns * rank_of(rows, columns),
        real=True,
        fields=fields,
        shared=shared,
    )
    return lift(who, stage, chained=False)


@rule
def apollo(
    learning_rate: Rate,
    rank: Count = 256,
    update_proj_gap: Count = 200,
    scale: Positive = 1.0,
    *,
    per: Annotated[str, OneOf(*_PER)] = "channel",
    growth: Positive | None = 1.01,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    seed: int = 0,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""APOLLO: gradients scaled channel by channel, for matrices; another rule for other leaves.

    For a matrix with no more rows than columns (a taller one is turned), with $P$ of independent normal
    numbers of variance $1/r$, drawn anew every $T$ steps from `seed`:

    $$R_t = P g_t, \qquad \tilde R_t = \mathrm{adam}(R_t), \qquad
      s_j = \lVert \tilde R_{:,j} \rVert / \lVert R_{:,j} \rVert, \qquad
      \theta_{t+1} = \theta_t - \eta_t (\alpha\, g_t \,\mathrm{diag}(s) + \lambda_t \theta_t)$$

    With `per="tensor"` there is one $s$ for a matrix: with a rank of 1 and $\alpha = \sqrt{128}$ that is
    APOLLO-Mini. An update's norm is at most $\gamma$ times that of the update before.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      rank: $r \ge 1$; of smaller matrices their shorter side.
      update_proj_gap: $T \ge 1$, steps from one projection to the next.
      scale: $\alpha > 0$.
      per: "channel" for a rate for each column, "tensor" for one.
      growth: $\gamma > 0$; None for no limit.
      b1: of `adam`.
      b2: of `adam`.
      eps: of `adam`.
      weight_decay: $\lambda$, like the learning rate.
      weight_decay_mask: which leaves decay, see `adamw`.
      mu_dtype: floating dtype of `mu`; by default float32 (float64 for float64).
      seed: of the projections, which are not kept.
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

    Source: Zhu et al. 2024, arXiv:2412.05270, algorithm 1.
    """
    matrices = checked_matrices("apollo", roles, other_leaves, owners)
    where: dict[str, Any] = {"roles": roles, "other_leaves": other_leaves, "owners": owners}
    adam: dict[str, Any] = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype}
    direction = scale_by_apollo(
        rank, update_proj_gap, scale, per=per, growth=growth, seed=seed, **adam, **where
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask)
    return full_matrix_rule("apollo", matrices, learning_rate, direction, decay, other, other_ratio)


def projection(seed: int, turn: Any, rows: int, rank: int, dtype: Any) -> Array:
    """[rank, rows], the same for all matrices and on all devices."""
    key = jax.random.fold_in(jax.random.key(seed), turn)
    return jax.random.normal(key, (rank, rows), dtype) / jnp.sqrt(jnp.asarray(rank, dtype))
