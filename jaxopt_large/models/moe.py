"""A mixture of experts' parameters (Jiang et al. 2024, arXiv:2401.04088), for planning: no forward pass."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._types import Params
from ._model import Model


def moe(
    *, vocabulary: int, layers: int, width: int, heads: int, kv_heads: int, mlp_width: int, experts: int
) -> Model:
    """A decoder of which each layer has several hidden layers, SwiGLU all of them, and a router before them.

    Args:
      vocabulary: number of tokens.
      layers: depth, the leading axis of every parameter under "layers".
      width: of the residual stream.
      heads: attention heads.
      kv_heads: heads of keys and values, each shared by as many of queries.
      mlp_width: of each expert's hidden layer.
      experts: how many a layer has: the second axis of their matrices.
    """
    narrow = width // heads * kv_heads

    def init(key: PRNGKeyArray) -> Params:
        del key
        return {
            "embed": jnp.zeros((vocabulary, width)),
            "head": jnp.zeros((width, vocabulary)),
            "layers": {
                "attn": {
                    "kv": jnp.zeros((layers, width, 2, narrow)),
                    "norm": jnp.ones((layers, width)),
                    "out": jnp.zeros((layers, width, width)),
                    "q": jnp.zeros((layers, width, width)),
                },
                "moe": {
                    "down": jnp.zeros((layers, experts, mlp_width, width)),
                    "gate": jnp.zeros((layers, experts, width, mlp_width)),
                    "norm": jnp.ones((layers, width)),
                    "router": jnp.zeros((layers, width, experts)),
                    "up": jnp.zeros((layers, experts, width, mlp_width)),
                },
            },
            "norm": jnp.ones((width,)),
        }

    return Model(init)
