"""From the direction of a rule of matrices to a rule of all leaves."""

from .._types import AnyRule, Rule, Scalar, ScalarOrSchedule
from ..leafwise import joined
from ..matrix.plan import Matrices
from ..matrix.routing import with_other_leaves
from .adam import adamw
from .learning_rate import scale_by_learning_rate, scaled


def full_matrix_rule(
    who: str,
    matrices: Matrices,
    learning_rate: ScalarOrSchedule,
    direction: Rule,
    decay: Rule,
    other: AnyRule | None,
    other_ratio: Scalar,
) -> Rule:
    """A rule that gives matrices `direction`, with decay, and all other leaves `other`.

    Args:
      who: its name.
      matrices: which leaves are matrices.
      learning_rate: of the matrices.
      direction: a lifted rule.
      decay: likewise.
      other: None for AdamW without decay.
      other_ratio: of its learning rate to that of the matrices.
    """
    rule = joined(who, direction, decay, scale_by_learning_rate(learning_rate))
    rest = adamw(scaled(learning_rate, other_ratio), weight_decay=0.0) if other is None else other
    return with_other_leaves(who, matrices, rule, rest)
