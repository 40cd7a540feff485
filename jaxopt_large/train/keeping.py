"""Which checkpoints of a run stay."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..config import Checkpoint


def kept(
    steps: Sequence[int], newest: int, policy: Checkpoint, told: Callable[[int], Mapping[str, Any]]
) -> set[int]:
    """The steps whose checkpoints stay: the newest, one of each so many hours, and the best.

    Args:
      steps: of all that there are, in order.
      newest: how many of these stay in any case.
      policy: what stays besides.
      told: step -> metadata: "seconds" that the run has taken, and "metrics" if it was evaluated there.
    """
    found = set(steps[-newest:])
    if policy.keep_every_hours is not None:
        due = 0.0
        for step in steps:
            seconds = told(step).get("position", {}).get("seconds", 0.0)
            if seconds >= due:
                found.add(step)
                due = seconds + policy.keep_every_hours * 3600
    if policy.keep_best:
        values = {step: told(step).get("metrics", {}).get(policy.metric) for step in steps}
        rated = [step for step in steps if values[step] is not None and math.isfinite(values[step])]
        sign = -1 if policy.metric.endswith("accuracy") else 1
        found |= set(sorted(rated, key=lambda step: (sign * values[step], -step))[: policy.keep_best])
    return found
