"""A certificate: rules of the Adam family reach the optimum of a convex problem, not only its neighborhood."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

OPTIMUM = 0.08616638865  # of this loss, by L-BFGS
STEPS = 500
RULES = {  # -> the largest learning rate, further settings
    "adam": (0.3, {}),
    "adamw": (0.3, {"weight_decay": 0.0}),
    "nadam": (0.3, {}),
    "radam": (1.0, {}),
    "amsgrad": (2.0, {"b2": 0.99}),
    "adamax": (3.0, {}),
    "adabelief": (0.3, {}),
    "yogi": (0.3, {}),
    "adan": (0.3, {"b1": 0.9}),
    "adopt": (1.0, {"b2": 0.99}),
    "laprop": (0.3, {}),
    "stable_adamw": (0.3, {"weight_decay": 0.0}),
}


@functools.cache
def _digits():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x = data.data
    return jnp.asarray((x - x.mean(0)) / (x.std(0) + 1e-3)), jnp.asarray(data.target)


def _loss(params):
    """Logistic regression on scikit-learn's digits, with an L2 penalty of 1e-3."""
    x, y = _digits()
    logits = x @ params["w"] + params["b"][None]
    picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    loss = jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)
    return loss + 5e-4 * jnp.sum(jnp.square(params["w"]))


@pytest.mark.parametrize("name", RULES)
def test_the_optimum_is_reached_in_500_steps(name, x64):
    rate, settings = RULES[name]
    rule = getattr(jl, name)(jl.warmup_cosine_decay_schedule(0.0, rate, STEPS // 10, STEPS), **settings)
    _digits.cache_clear()
    _digits()

    def step(carry, _):
        params, state = carry
        updates, state = rule.update(jax.grad(_loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)}
    end = jax.jit(lambda p: _loss(jax.lax.scan(step, (p, rule.init(p)), None, STEPS)[0][0]))(params)
    np.testing.assert_allclose(float(end), OPTIMUM, rtol=0, atol=1e-6)
