"""One equation for the ways of all platforms: only the one that is compiled for is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_large.tracing.by_platform import by_platform

_TRACED = []


def _whole(arrays, scalars):
    _TRACED.append("whole")
    return [[x * scalars[0], jnp.exp(x)] for (x,) in arrays]


def _way(name):
    def way(arrays, scalars):
        _TRACED.append(name)
        return _whole(arrays, scalars)

    return way


@pytest.fixture(autouse=True)
def _nothing_traced_yet():
    _TRACED.clear()


def _step(x, y, factor):
    return by_platform(_whole, {"cpu": _way("cpu"), "tpu": _way("tpu")}, [[x], [y]], [factor])


_ARGS = (jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3)), jnp.float32(2.0))


def _want(x, y, factor):
    return [[x * factor, np.exp(x)], [y * factor, np.exp(y)]]


def _assert_close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_only_the_platform_that_is_compiled_for_is_traced():
    traced = jax.jit(_step).trace(*_ARGS)
    assert "cpu" not in _TRACED
    traced.lower(lowering_platforms=("tpu",))
    assert "tpu" in _TRACED
    assert "cpu" not in _TRACED
    _assert_close(traced.lower().compile()(*_ARGS), _want(*_ARGS))
    assert "cpu" in _TRACED


@pytest.mark.parametrize("jitted", [True, False])
def test_the_numbers(jitted):
    _assert_close((jax.jit(_step) if jitted else _step)(*_ARGS), _want(*_ARGS))


def test_a_batch_of_them():
    xs = jnp.stack([_ARGS[0], 2 * _ARGS[0]])
    got = jax.jit(jax.vmap(_step, in_axes=(0, None, None)))(xs, *_ARGS[1:])
    for n, x in enumerate(xs):
        _assert_close(jax.tree.map(lambda leaf, n=n: leaf[n], got), _want(x, *_ARGS[1:]))


def test_derivatives_are_those_of_the_whole():
    def loss(x, factor):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(_step(x, _ARGS[1], factor)))

    x, _, factor = _ARGS
    got = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, factor)
    _assert_close(got, (factor + np.exp(x), np.sum(x) + np.sum(_ARGS[1])))
    _, tangent = jax.jvp(lambda x: loss(x, factor), (x,), (jnp.ones_like(x),))
    np.testing.assert_allclose(tangent, np.sum(factor + np.exp(x)), rtol=1e-6)


def test_what_depends_on_nothing_batched_is_one_for_all():
    def step(x, token):
        return by_platform(lambda x, t: (x + 1, t + 1), {"cpu": lambda x, t: (x + 1, t + 1)}, x, token)

    closed = jax.make_jaxpr(jax.vmap(step, in_axes=(0, None), out_axes=(0, None)))(
        jnp.ones((4, 3)), jnp.int32(0)
    )
    assert [v.shape for v in closed.out_avals] == [(4, 3), ()]


def test_eagerly_nothing_is_compiled_for_it():
    got = by_platform(_whole, {"cpu": _way("cpu")}, [[_ARGS[0]]], [_ARGS[2]])
    assert _TRACED[0] == "cpu"
    _assert_close(got, _want(*_ARGS)[:1])


def test_without_jit_too():
    with jax.disable_jit():
        _assert_close(jax.jit(_step)(*_ARGS), _want(*_ARGS))
    closed = jax.make_jaxpr(_step)(*_ARGS)
    _assert_close(jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *_ARGS), _want(*_ARGS))
