"""Links of matrix rules, between which nothing is moved."""

from collections.abc import Sequence
from typing import Any

from .._errors import Problems, message
from .._hyperparameters import Mask, OtherRule, Positive, Rate, checked
from .._types import Rule
from ..leafwise import joined
from ..matrix.plan import Matrices
from ..matrix.stage import MatrixStage, PlanField
from ._full_matrix_rule import full_matrix_rule
from .weight_decay import add_decayed_weights

__all__ = ["matrix_chain"]


@checked
def matrix_chain(
    *links: Any,
    learning_rate: Rate | None = None,
    weight_decay: Rate = 0.0,
    weight_decay_mask: Mask = None,
    cautious: bool = False,
    other: OtherRule = None,
    other_ratio: Positive = 1.0,
) -> Rule:
    """Directions of matrix rules, one after another, on the same devices.

    From the first link that works on whole matrices to the last, each matrix stays with its owner: it travels
    there once, and back once, however many links there are.

        jl.matrix_chain(
            jl.scale_by_soap(), jl.orthogonalize(), jl.normalize_outputs(), learning_rate=3e-3
        )

    Args:
      *links: `scale_by_*` and their kin; their roles, other leaves and owners must be the same. Of rules of
        the library any that `leafwise.lift` has made may be among them.
      learning_rate: with it a full rule is made, which gives other leaves to `other`; without it a direction.
      weight_decay: of the full rule, multiplied by the learning rate.
      weight_decay_mask: which matrices decay.
      cautious: decay only where the step goes towards 0 anyway.
      other: the rule for all other leaves; by default AdamW without decay.
      other_ratio: of its learning rate to this one.

    Returns:
      The rule; its state is a tuple with one entry for each thing that a link does.

    Raises:
      TypeError: a link is no rule of the library's.
      ValueError: there is no link, none works on matrices, or links read leaves otherwise.

    >>> rule = jl.matrix_chain(jl.scale_by_soap(), jl.orthogonalize("polar_express"))
    >>> updates, _ = rule.update(jnp.diag(jnp.array([3.0, 0.5])), rule.init(jnp.zeros((2, 2))))
    >>> bool(abs(jnp.linalg.svd(updates, compute_uv=False) - 1).max() < 0.15)
    True
    """
    who = "matrix_chain"
    matrices = _same_matrices(who, links)
    if learning_rate is None:
        return joined(who, *links)
    decay = add_decayed_weights(weight_decay, weight_decay_mask, cautious=cautious)
    return full_matrix_rule(who, matrices, learning_rate, joined(who, *links), decay, other, other_ratio)


def _same_matrices(who: str, links: Sequence[Any]) -> Matrices:
    """Which leaves are matrices, for all links."""
    problems, found = Problems(who), []
    for n, link in enumerate(links):
        stages = getattr(getattr(link, "update", None), "stages", None)
        if stages is None:
            problems.add(f"link {n} is none of the library's directions, got {link!r}")
            continue
        kinds = [k for s in stages if isinstance(s, MatrixStage) for k in s.kinds.values()]
        found += [k.matrices for k in kinds if isinstance(k, PlanField)]
    problems.raise_if_any(TypeError)
    if not found:
        wrong = f"none of {len(links)} links works on matrices"
        raise ValueError(message(who, wrong, do="Give at least one, such as jl.orthogonalize()"))
    if any(m != found[0] for m in found):
        wrong = "links read leaves otherwise: their roles, other leaves or owners differ"
        raise ValueError(message(who, wrong, do="Give all links the same"))
    return found[0]
