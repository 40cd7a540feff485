"""BERT's parameters (Devlin et al. 2019, arXiv:1810.04805), for planning: no forward pass."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._types import Params
from ._model import Model


def bert(
    *, vocabulary: int, layers: int, width: int, mlp_width: int, positions: int, types: int = 2
) -> Model:
    """The encoder with its pooler, layers stacked along a leading axis.

    Args:
      vocabulary: number of word pieces.
      layers: number of encoder layers.
      width: hidden size.
      mlp_width: intermediate size.
      positions: longest sequence.
      types: number of token types.
    """

    def init(key: PRNGKeyArray) -> Params:
        del key

        def dense(m: int, n: int) -> Params:
            return {"bias": jnp.zeros((layers, n)), "kernel": jnp.zeros((layers, m, n))}

        def norm(*stack: int) -> Params:
            return {"bias": jnp.zeros((*stack, width)), "scale": jnp.ones((*stack, width))}

        return {
            "embeddings": {
                "norm": norm(),
                "position": jnp.zeros((positions, width)),
                "type": jnp.zeros((types, width)),
                "word": jnp.zeros((vocabulary, width)),
            },
            "layers": {
                "attn": {name: dense(width, width) for name in ("key", "out", "query", "value")},
                "attn_norm": norm(layers),
                "mlp": {"down": dense(mlp_width, width), "up": dense(width, mlp_width)},
                "mlp_norm": norm(layers),
            },
            "pooler": {"bias": jnp.zeros((width,)), "kernel": jnp.zeros((width, width))},
        }

    return Model(init)
