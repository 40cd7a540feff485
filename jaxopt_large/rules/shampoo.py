"""Shampoo: gradients between inverse roots of their second moments (Gupta et al. 2018; Shi et al. 2023)."""

from typing import Annotated, Any, NamedTuple

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
from .._numerics import as_decay, bias_correction, bounded, divide, ema, plus, safe_increment
from .._types import Rule, Updates
from ..leafwise import count, lift, zeros
from ..matrix.blocks import Blocks, all_finite, blocks_of, misfit, stacked
from ..matrix.norms import frobenius
from ..matrix.plan import MatrixPlan, checked_matrices
from ..matrix.products import product
from ..matrix.refresh import Refresh
from ..matrix.roles import OTHER_LEAVES
from ..matrix.roots import inverse_root
from ..matrix.stage import matrix_stage, numbers, of_each
from ._full_matrix_rule import full_matrix_rule
from ._registry import rule
from .weight_decay import add_decayed_weights

__all__ = ["scale_by_shampoo", "shampoo"]

GRAFTS = ("adam", "sgd", "none")
SIDES = ("both", "in", "out")


class ScaleByShampooState(NamedTuple):
    """State of Shampoo. A matrix [m, n] is cut into blocks [b, c]; factors are [..., blocks, b, b]."""

    matrices: MatrixPlan  # how leaves are read, and who works on them
    count: Int[Array, ""]  # steps taken
    mu: Updates  # mean gradient, float32, shapes of the parameters
    nu: Updates  # mean squared gradient, float32; None where it is not grafted to Adam
    left: Updates  # mean of G G^T, float32
    right: Updates  # mean of G^T G, float32
    left_root: Updates  # its inverse root, float32
    right_root: Updates  # likewise
    failures: Updates  # roots that were not found, of each block
    numbers: Updates | None  # of the matrices, which take turns where refreshes are staggered


class _Shared(NamedTuple):
    """What all matrices share in a step."""

    number: Array  # of the step, from 1
    mu: Array  # corrections of the biases of the means
    nu: Array


class _Side(NamedTuple):
    """Of stacked blocks: a factor, its root and how many roots were not found."""

    factor: Array
    root: Array
    failures: Array


@checked
def scale_by_shampoo(
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    mu_dtype: StateDtype = None,
    *,
    ridge: Positive = 1e-4,
    sides: Annotated[str, OneOf(*SIDES)] = "both",
    exponent: Count | None = None,
    graft: Annotated[str, OneOf(*GRAFTS)] = "adam",
    refresh: Count = 10,
    staggered: bool = False,
    block: Count | None = None,
    roles: Roles = None,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""The direction of Shampoo, see `shampoo`; every leaf must be a matrix."""
    who = "scale_by_shampoo"
    d1, d2 = as_decay(b1), as_decay(b2)
    schedule = Refresh(refresh, staggered)

    def cut_of(rows: int, columns: int) -> Blocks:
        cut = blocks_of(rows, columns, block)
        return cut._replace(left=cut.left and sides != "out", right=cut.right and sides != "in")

    def shared(kept: ScaleByShampooState) -> _Shared:
        n = safe_increment(kept.count)
        return _Shared(n, bias_correction(d1, n), bias_correction(d2, n))

    def step(shared: _Shared, g: Array, p: Any, kept: ScaleByShampooState) -> tuple[Array, Any]:
        del p
        cut = cut_of(*g.shape[1:])
        power = exponent or 2 * (int(cut.left) + int(cut.right))
        g = bounded(g, cut.rows * cut.columns)
        mu = ema(kept.mu, g, d1)
        mean = mu / shared.mu
        blocks, made = stacked(cut.split(g)), stacked(cut.split(mean))
        due = schedule.is_due(shared.number, kept.numbers, len(g), cut.total)
        sides_of = _sides(kept)
        if cut.left:
            sides_of["left"] = side(sides_of["left"], product(blocks, blocks.mT), blocks, power, due, shared)
            made = product(sides_of["left"].root, made)
        if cut.right:
            sides_of["right"] = side(
                sides_of["right"], product(blocks.mT, blocks), blocks, power, due, shared
            )
            made = product(made, sides_of["right"].root)
        direction, kept = cut.joined(made), _kept(kept, sides_of)._replace(mu=mu)
        if graft == "none":
            return direction, kept
        like = mean
        if graft == "adam":
            nu = ema(kept.nu, jnp.square(g), d2)
            like, kept = divide(mean, plus(jnp.sqrt(nu / shared.nu), eps), eps), kept._replace(nu=nu)
        return direction * divide(frobenius(like), frobenius(direction)), kept

    def side(old: _Side, squares: Array, g: Array, power: int, due: Array, shared: _Shared) -> _Side:
        """A factor that has seen a gradient, and its root where it is due."""
        fine = all_finite(g)[:, None, None]  # what is not finite it forgets
        factor = jnp.where(fine, ema(old.factor, squares, d2), old.factor)

        def rooted(side: _Side) -> _Side:
            root, found = inverse_root(side.factor / shared.nu, power, ridge)
            before = jnp.where(shared.number == 1, jnp.eye(root.shape[-1], dtype=root.dtype)[None], side.root)
            kept = jnp.where(found[:, None, None], root, before)
            failed = ~found & jnp.any(side.factor != 0, axis=(1, 2))
            return _Side(side.factor, kept, side.failures + failed.astype(side.failures.dtype))

        return schedule.run(due, rooted, old._replace(factor=factor))

    def factor(side: str) -> Any:
        return of_each(lambda matrix: cut_of(*matrix).factor(side))

    fields = {
        "count": count(),
        "mu": zeros(mu_dtype),
        "nu": zeros(real=True) if graft == "adam" else None,
        "left": factor("left"),
        "right": factor("right"),
        "left_root": factor("left"),
        "right_root": factor("right"),
        "failures": of_each(lambda matrix: (cut_of(*matrix).total, 2)),
        "numbers": numbers() if staggered else None,
    }
    stage = matrix_stage(
        step,
        ScaleByShampooState,
        checked_matrices(who, roles, other_leaves, owners),
        flops=lambda rows, columns: _flops(cut_of(rows, columns), refresh),
        misfit=lambda sizes: misfit(sizes, block),
        real=True,
        fields=fields,
        shared=shared,
    )
    return lift(who, stage, chained=False)


@rule
def shampoo(
    learning_rate: Rate,
    b1: Decay = 0.9,
    b2: Decay = 0.99,
    eps: NonNegative = 1e-8,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    mu_dtype: StateDtype = None,
    *,
    ridge: Positive = 1e-4,
    sides: Annotated[str, OneOf(*SIDES)] = "both",
    exponent: Count | None = None,
    graft: Annotated[str, OneOf(*GRAFTS)] = "adam",
    refresh: Count = 10,
    staggered: bool = False,
    block: Count | None = None,
    cautious: bool = False,
    roles: Roles = None,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
    other_leaves: Glob = OTHER_LEAVES,
    owners: Axes = None,
) -> Rule:
    r"""Shampoo: gradients between inverse roots of their second moments, for matrices.

    All other leaves have another rule.

    For each block $G_t$ of a matrix,

    $$L_t = b_2 L_{t-1} + (1-b_2) G_t G_t^T, \qquad R_t = b_2 R_{t-1} + (1-b_2) G_t^T G_t$$
    $$\mu_t = b_1 \mu_{t-1} + (1-b_1) G_t, \qquad
      U_t = \hat L^{-1/p} \hat\mu_t \hat R^{-1/p}$$
    $$\theta_{t+1} = \theta_t - \eta_t \left( U_t \lVert A_t \rVert_F / \lVert U_t \rVert_F
      + \lambda_t \theta_t \right)$$

    with hats for corrected biases, $p$ twice the number of factors, and $A_t$ the direction that it is
    grafted to: Adam's, or $\hat\mu_t$. Roots are those of the last refresh, of a factor with
    $\epsilon \lVert L \rVert_F$ added to its diagonal. One that is not found keeps the one before, the
    identity at first, and is counted in `failures`.

    Args:
      learning_rate: $\eta$, a number >= 0, an array of shape (), or a schedule.
      b1: $b_1$ in [0, 1).
      b2: $b_2$ in [0, 1).
      eps: of Adam, that it is grafted to.
      weight_decay: $\lambda$, like the learning rate; multiplied by it.
      weight_decay_mask: which matrices decay.
      mu_dtype: floating dtype of `mu`.
      ridge: $\epsilon$, what is added to the diagonal of a factor, relative to its norm.
      sides: "both" factors, or that of the inputs, "in", or of the outputs, "out".
      exponent: $p$; by default 4 with both factors, 2 with one.
      graft: what gives the update its norm: "adam", "sgd" (the momentum) or "none".
      refresh: steps from one refresh of the roots to the next.
      staggered: refresh a share of all blocks in each step, in the place of all of them in some.
      block: the longest side of a block; by default 512. A side without a divisor near it has no factor.
      cautious: decay only where the step goes towards 0 anyway.
      roles: glob -> role, see `muon`, as all others.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.
      other_leaves: a glob of those.
      owners: axes whose devices share the work.

    Returns:
      The rule; its `update` needs `params`.

    Raises:
      ValueError: as `muon`.
      TypeError: as `muon`.

    Source: Gupta et al. 2018, arXiv:1802.09568, algorithm 1; Shi et al. 2023, arXiv:2309.06497, for grafting,
    means and blocks.
    """
    matrices = checked_matrices("shampoo", roles, other_leaves, owners)
    direction = scale_by_shampoo(
        b1,
        b2,
        eps,
        mu_dtype,
        ridge=ridge,
        sides=sides,
        exponent=exponent,
        graft=graft,
        refresh=refresh,
        staggered=staggered,
        block=block,
        roles=roles,
        other_leaves=other_leaves,
        owners=owners,
    )
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule("shampoo", matrices, learning_rate, direction, decay, other, other_ratio)


def _sides(kept: ScaleByShampooState) -> dict[str, _Side]:
    failures = stacked(kept.failures)
    return {
        "left": _Side(stacked(kept.left), stacked(kept.left_root), failures[:, 0]),
        "right": _Side(stacked(kept.right), stacked(kept.right_root), failures[:, 1]),
    }


def _kept(kept: ScaleByShampooState, sides: dict[str, _Side]) -> ScaleByShampooState:
    left, right = sides["left"], sides["right"]
    return kept._replace(
        left=left.factor.reshape(kept.left.shape),
        right=right.factor.reshape(kept.right.shape),
        left_root=left.root.reshape(kept.left.shape),
        right_root=right.root.reshape(kept.right.shape),
        failures=jnp.stack([left.failures, right.failures], axis=1).reshape(kept.failures.shape),
    )


def _flops(cut: Blocks, refresh: int) -> float:
    """Of a matrix: factors, products with their roots, and a share of a refresh of 25 iterations."""
    b, c = cut.rows, cut.columns
    sides = [n for n, there in ((b, cut.left), (c, cut.right)) if there]
    return cut.total * sum(4.0 * b * c * n + 25 * 4 * 2.0 * n**3 / refresh for n in sides)
