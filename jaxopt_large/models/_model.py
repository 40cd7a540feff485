"""What a model is to the training loop."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Params


@dataclasses.dataclass(frozen=True)
class Model:
    """Pure functions over one parameter tree.

    Attributes:
      init: key -> parameters.
      loss: (parameters, batch, place) -> mean loss in nats per token (or example); without `place` arrays
        are wherever they are. None for an architecture that is here for planning only.
      accuracy: (parameters, batch) -> share of right answers; None where that says little.
    """

    init: Callable[[PRNGKeyArray], Params]
    loss: Callable[..., Float[Array, ""]] | None = None
    accuracy: Callable[[Params, Any], Float[Array, ""]] | None = None

    def abstract(self) -> Params:
        """The parameters' shapes and dtypes; nothing is allocated."""
        return jax.eval_shape(self.init, jax.random.key(0))
