"""The forward interpreter through branches and loops, by the lattice of signs held against real numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxopt_large.storage._signs import never_negative


def _rule(step):
    """Momentum whose new value `step` makes of the old one and the gradient."""

    def update(updates, state, params=None):
        new = jax.tree.map(step, state.trace, updates)
        return new, optax.TraceState(new)

    return optax.with_extra_args_support(
        optax.GradientTransformation(lambda p: optax.TraceState(jax.tree.map(jnp.zeros_like, p)), update)
    )


def _by_while(body):
    return lambda m, g: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, body(c[1], g)), (0, m))[1]


def _by_scan(body):
    return lambda m, g: jax.lax.scan(lambda c, _: (body(c, g), None), m, None, length=3)[0]


def _by_rows(body):
    return lambda m, g: jax.lax.scan(lambda c, row: (c, body(*row)), 0.0, (m, g))[1]


def _by_cond(body):
    return lambda m, g: jax.lax.cond(jnp.sum(g) > 0, lambda: body(m, g), lambda: m)


@pytest.mark.parametrize("around", [_by_while, _by_scan, _by_rows, _by_cond, lambda body: body])
@pytest.mark.parametrize(
    ("body", "positive"),
    [
        (lambda m, g: 0.9 * m + jnp.square(g), True),
        (lambda m, g: 0.9 * m + g, False),
        (lambda m, g: jnp.maximum(m, jnp.abs(g)), True),
        (lambda m, g: m - jnp.square(g), False),
    ],
)
def test_what_loops_and_branches_do_is_followed(around, body, positive):
    rule, params = _rule(around(body)), {"w": jnp.zeros((4, 8))}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, rule.init(params)))
    (said,) = never_negative(rule, *shapes)
    assert bool(said) == positive
    state, least = rule.init(params), 0.0
    for seed in range(4):
        grads = {"w": jnp.asarray(np.random.default_rng(seed).normal(size=(4, 8)), jnp.float32)}
        _, state = rule.update(grads, state, params)
        least = min(least, float(jnp.min(state.trace["w"])))
    assert (least >= 0) == positive
