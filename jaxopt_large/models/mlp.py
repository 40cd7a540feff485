"""A multilayer perceptron that classifies."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .._types import Params
from ._model import Model
from ._place import ANYWHERE, Place


def mlp(*, inputs: int, hidden: list[int], classes: int, dtype: str = "float32") -> Model:
    """A perceptron with ReLU between its layers.

    Args:
      inputs: features per example.
      hidden: widths of the hidden layers; none makes it logistic regression.
      classes: number of classes.
      dtype: of activations and products; parameters and the loss are float32.

    Returns:
      The model; its loss takes {"features": float[batch, inputs], "labels": int[batch]}.
    """
    sizes = [inputs, *hidden, classes]

    def init(key: PRNGKeyArray) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        return {
            f"dense_{i}": {
                "bias": jnp.zeros((n,), jnp.float32),
                "kernel": math.sqrt(2 / m) * jax.random.normal(k, (m, n), jnp.float32),
            }
            for i, (k, m, n) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
        }

    def logits(params: Params, features: Float[Array, "b i"]) -> Float[Array, "b c"]:
        x = features.astype(dtype)
        for i in range(len(sizes) - 1):
            layer = params[f"dense_{i}"]
            x = x @ layer["kernel"].astype(dtype) + layer["bias"].astype(dtype)[None, :]
            x = jax.nn.relu(x) if i < len(sizes) - 2 else x
        return x.astype(jnp.float32)

    def loss(params: Params, batch: dict[str, Array], place: Place = ANYWHERE) -> Float[Array, ""]:
        del place  # small enough for any
        scores = jax.nn.log_softmax(logits(params, batch["features"]))
        return -jnp.mean(jnp.take_along_axis(scores, batch["labels"][:, None], axis=1))

    def accuracy(params: Params, batch: dict[str, Array]) -> Float[Array, ""]:
        right = jnp.argmax(logits(params, batch["features"]), axis=1) == batch["labels"]
        return jnp.mean(right.astype(jnp.float32))

    return Model(init, loss, accuracy)
