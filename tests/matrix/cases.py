"""The rules of matrices, with their oracles and the settings in which they are tried."""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl

from . import oracles


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    label: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    rate: float = 0.02

    def rule(self, rate=None, **more):
        return getattr(jl, self.name)(self.rate if rate is None else rate, **{**self.settings, **more})

    def precise(self, **more):
        """With all products in float32, in which they do not depend on how many are stacked."""
        own = inspect.signature(getattr(jl, self.name)).parameters
        return self.rule(**({"ns_dtype": "float32"} if "ns_dtype" in own else {}), **more)

    def oracle(self, grads, start):
        more = {}
        if self.name == "dion":  # which begins with random numbers
            state = self.rule().init(jnp.asarray(start)).inner_states["matrices"].inner_state[0]
            more["basis"] = np.asarray(state.basis)
        made = getattr(oracles, self.name)(list(grads), start, self.rate, **self.settings, **more)
        return np.stack(list(made))

    def __str__(self):
        return self.name + (f"-{self.label}" if self.label else "")


CASES = [
    Case("muon"),
    Case("muon", "polar", {"ns_coeffs": "polar_express", "weight_decay": 0.1, "scale": "moonlight"}),
    Case("muon", "plain", {"nesterov": False, "scale": "spectral", "weight_decay": 0.1, "cautious": True}),
    Case("normuon"),
    Case("normuon", "decayed", {"weight_decay": 0.1, "scale": "keller"}),
    Case("soap", rate=0.003),
    Case("soap", "often", {"refresh": 2, "b2": 0.9, "weight_decay": 0.1}, rate=0.003),
    Case("shampoo", rate=0.003),
    Case("shampoo", "plain", {"graft": "none", "ridge": 1e-3, "refresh": 1, "weight_decay": 0.1}, rate=0.003),
    Case("shampoo", "one side", {"graft": "sgd", "sides": "in", "refresh": 3}, rate=0.1),
    Case("kron", rate=0.002),
    Case("kron", "triangular", {"form": "triangular", "weight_decay": 0.1}, rate=0.002),
    Case("dion", rate=0.02),
    Case("galore", settings={"rank": 4, "update_proj_gap": 20}, rate=0.01),
    Case("galore", "decayed", {"rank": 2, "weight_decay": 0.1, "scale": 0.25}, rate=0.01),
    Case("apollo", settings={"rank": 4, "update_proj_gap": 20}, rate=0.01),
    Case("apollo", "mini", {"rank": 1, "per": "tensor", "growth": None, "weight_decay": 0.1}, rate=0.01),
    Case("scion", rate=0.001),
    Case("scion", "free", {"constrained": False, "radius": 3.0}, rate=0.001),
]
RULES = [case for case in CASES if not case.label]
_FIRST = ("muon",)  # make test-all tries the others too
every_rule = pytest.mark.parametrize(
    "case", [pytest.param(c, id=str(c), marks=() if c.name in _FIRST else pytest.mark.full) for c in RULES]
)

ROLES = {"stack": "layers in out", "qkv": "in (3 out)"}


def leaf(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def params(dtype=jnp.float32):
    """Matrices that are tall, wide and odd, two of one shape, a stack, fused ones, and other leaves."""
    shapes = {
        "wide": (16, 24),
        "again": (16, 24),
        "tall": (24, 16),
        "odd": (7, 5),
        "stack": (3, 16, 24),
        "qkv": (16, 72),
        "bias": (10,),
        "embed": (32, 8),
    }
    return {name: leaf(n, *shape, dtype=dtype) for n, (name, shape) in enumerate(shapes.items())}


def gradients(tree, steps, seed=100):
    """Of few bits: a mean over devices that hold the same is exact."""
    return [
        jax.tree.map(
            lambda p, s=seed + i: leaf(s + p.size, *p.shape).astype(jnp.bfloat16).astype(p.dtype), tree
        )
        for i in range(steps)
    ]
