"""T5's parameters (Raffel et al. 2020, arXiv:1910.10683), for planning: no forward pass."""

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .._types import Params
from ._model import Model


def t5(
    *,
    vocabulary: int,
    layers: int,
    width: int,
    heads: int,
    head_width: int,
    mlp_width: int,
    buckets: int = 32,
) -> Model:
    """Encoder and decoder of version 1.0: tied embedding, no biases, one relative bias per stack.

    Args:
      vocabulary: number of word pieces.
      layers: number of layers in each of the two stacks.
      width: of the residual stream.
      heads: attention heads.
      head_width: size of a head; heads x head_width need not be the width.
      mlp_width: of the hidden layer.
      buckets: of relative distance.
    """
    inner = heads * head_width

    def init(key: PRNGKeyArray) -> Params:
        del key

        def attention() -> Params:
            into = {name: jnp.zeros((layers, width, inner)) for name in ("key", "query", "value")}
            return {**into, "norm": jnp.ones((layers, width)), "out": jnp.zeros((layers, inner, width))}

        def stack(*attentions: str) -> Params:
            return {
                "layers": {
                    **{name: attention() for name in attentions},
                    "mlp": {
                        "down": jnp.zeros((layers, mlp_width, width)),
                        "norm": jnp.ones((layers, width)),
                        "up": jnp.zeros((layers, width, mlp_width)),
                    },
                },
                "norm": jnp.ones((width,)),
                "relative_bias": jnp.zeros((buckets, heads)),
            }

        return {
            "decoder": stack("attn", "cross_attn"),
            "embed": jnp.zeros((vocabulary, width)),
            "encoder": stack("attn"),
        }

    return Model(init)
