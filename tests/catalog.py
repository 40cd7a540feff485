"""Every rule, once: a new one joins the contracts by a line here."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

from . import oracles


def needs_host_memory():
    """Skips the test where JAX moves nothing to the host's memory when it compiles for CPU."""
    if not hasattr(jax, "reshard"):
        pytest.skip("host memory on CPU needs JAX 0.8")


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    ours: Callable[..., Any]
    oracle: Callable[..., Any]
    optax: Callable[..., Any]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 0.01
    label: str = ""

    def rule(self, rate: Any = None, **more: Any) -> Any:
        return self.ours(self.rate if rate is None else rate, **{**self.settings, **more})

    def peer(self, rate: Any = None, **more: Any) -> Any:
        return self.optax(self.rate if rate is None else rate, **{**self.settings, **more})

    def __str__(self) -> str:
        return self.name + (f"-{self.label}" if self.label else "")


RULES = [
    Case("gradient_descent", jl.gradient_descent, oracles.gradient_descent, optax.sgd),
    Case("sgd", jl.sgd, oracles.sgd, optax.sgd, {"momentum": 0.9}),
    Case("adagrad", jl.adagrad, oracles.adagrad, optax.adagrad, rate=0.1),
    Case("rmsprop", jl.rmsprop, oracles.rmsprop, optax.rmsprop),
    Case("adam", jl.adam, oracles.adam, optax.adam),
    Case("adamw", jl.adamw, oracles.adamw, optax.adamw, {"weight_decay": 0.1}),
    Case("lion", jl.lion, oracles.lion, optax.lion, {"weight_decay": 0.1}, rate=0.001),
]

VARIANTS = [
    *RULES,
    Case("sgd", jl.sgd, oracles.sgd, optax.sgd, {"momentum": 0.9, "nesterov": True}, label="nesterov"),
    Case("adam", jl.adam, oracles.adam, optax.adam, {"nesterov": True, "b2": 0.98}, label="nesterov"),
    Case("adam", jl.adam, oracles.adam, optax.adam, {"b1": 0.0, "eps_root": 1e-8}, label="b1=0"),
    Case("rmsprop", jl.rmsprop, oracles.rmsprop, optax.rmsprop, {"centered": True}, label="centered"),
    Case(
        "rmsprop",
        jl.rmsprop,
        oracles.rmsprop,
        optax.rmsprop,
        {"momentum": 0.9, "nesterov": True, "eps_in_sqrt": False, "initial_scale": 1.0},
        label="momentum",
    ),
    Case(
        "rmsprop",
        jl.rmsprop,
        oracles.rmsprop,
        optax.rmsprop,
        {"bias_correction": True, "decay": 0.99, "momentum": 0.5},
        label="corrected",
    ),
]

every_rule = pytest.mark.parametrize("case", RULES, ids=str)
every_variant = pytest.mark.parametrize("case", VARIANTS, ids=str)


def mixed_params(dtype: Any = jnp.float32) -> Any:
    """Leaves of every kind: matrix, stack, vector, scalar, zero-size, None, nested and odd lengths."""
    r = np.random.default_rng(0)

    def leaf(*shape: int) -> jax.Array:
        return jnp.asarray(r.normal(size=shape), dtype)

    return {
        "dense": {"kernel": leaf(16, 24), "bias": leaf(10)},
        "layers": [leaf(4, 8, 16), None],
        "odd": leaf(3, 5),
        "scale": leaf(),
        "empty": leaf(0, 3),
    }


def like(params: Any, seed: int, scale: float = 1.0) -> Any:
    """Random gradients of the parameters' shapes and dtypes."""
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(scale * r.normal(size=p.shape), p.dtype), params)
