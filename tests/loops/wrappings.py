"""One rule in every wrapper, alone and in all of them at once, for what people do with a state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from tests.catalog import needs_host_memory


def _params(seed=0):
    r = np.random.default_rng(seed)
    return {
        "dense": {"kernel": jnp.asarray(r.normal(size=(128, 256)), jnp.float32), "bias": jnp.zeros(256)},
        "scale": jnp.float32(1.0),
    }


PARAMS = _params()
GRADS = [jax.tree.map(lambda p, n=n: jnp.cos((n + 1) * p) / 8, PARAMS) for n in range(3)]


def _stored(rule):
    return jl.stored(rule, mu=jl.int8(), nu=jl.int8())


def _zero(rule):
    return jl.zero(rule, make_mesh((8,), ("data",)), "data")


def _plain():
    return jl.adamw(1e-2, weight_decay=0.1)


WRAPPED = {
    "plain": _plain,
    "chain": lambda: optax.chain(jl.clip_by_global_norm(1.0), jl.skip_nonfinite(_plain())),
    "partition": lambda: jl.partition({"*bias": jl.freeze(), "*kernel": _plain(), "*": jl.lion(1e-3)}),
    "stored": lambda: _stored(_plain()),
    "zero": lambda: _zero(_plain()),
    "accumulate": lambda: jl.accumulate(_plain(), 2),
    "offload": lambda: jl.offload(_plain()),
    "all": lambda: jl.offload(_zero(jl.accumulate(_stored(_plain()), 2))),
}


every_wrapper = pytest.mark.parametrize("name", WRAPPED)


def after(rule, state, params, grads):
    """Parameters and state after steps, compiled."""

    @jax.jit
    def step(params, state, g):
        updates, state = rule.update(g, state, params)
        return optax.apply_updates(params, updates), state

    for g in grads:
        params, state = step(params, state, g)
    return params, state


def same_bits(one, other):
    """Raises unless two trees have one structure and the same bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


_begun: dict = {}


def begun(name):
    """A rule, its state after a step, the parameters, and what both are after one more step."""
    if name in ("offload", "all"):
        needs_host_memory()
    if name not in _begun:
        rule = WRAPPED[name]()
        params, state = after(rule, rule.init(PARAMS), PARAMS, GRADS[:1])
        _begun[name] = rule, params, state, after(rule, state, params, GRADS[1:2])
    return _begun[name]


def goes_on(name, state):
    """Raises unless a state that went somewhere and came back goes on as the one that stayed."""
    rule, params, _, expected = begun(name)
    same_bits(after(rule, state, params, GRADS[1:2]), expected)
