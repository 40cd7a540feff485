"""Full rules: matrices to one rule, all other leaves to another."""

from .._errors import message
from .._routing import routed
from .._types import AnyRule, Params, Rule
from .plan import Matrices

MATRICES, OTHER = "matrices", "other"


def with_other_leaves(who: str, matrices: Matrices, rule: AnyRule, other: AnyRule) -> Rule:
    """A rule for matrices, and one for the leaves that are none.

    Args:
      who: for errors.
      matrices: which leaves are matrices.
      rule: for them.
      other: for the rest.

    Returns:
      The rule; its state is a `PartitionState` with the groups "matrices" and "other".
    """

    def choose(params: Params) -> list[str]:
        roles = matrices.assigned(who, params)
        if roles and all(role.is_other for role in roles):
            wrong = f"none of {len(roles)} leaves is a matrix"
            allowed = f"other leaves are {matrices.other_leaves!r}, vectors and scalars"
            do = "Use the rule of the other leaves alone, or pass other_leaves"
            raise ValueError(message(who, wrong, allowed=allowed, do=do))
        return [OTHER if role.is_other else MATRICES for role in roles]

    return routed(who, {MATRICES: rule, OTHER: other}, choose)
