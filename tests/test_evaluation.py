"""The parameters to evaluate: of any rule that averages, wherever its state is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl

P = PartitionSpec
RULES = {
    "ema_of_params": lambda: jl.ema_of_params(jl.sgd(0.1), 0.5),
    "lookahead": lambda: jl.lookahead(jl.sgd(0.1), 2),
    "schedule_free": lambda: jl.schedule_free(jl.sgd(0.1), 0.1),
    "asgd": lambda: jl.asgd(0.1, t0=0.0),
}


def _params():
    return {"w": jnp.linspace(-1.0, 1.0, 512).reshape(16, 32), "odd": jnp.ones(7)}


def _after(rule, params, steps=3):
    state, step = rule.init(params), jax.jit(rule.update)
    for _ in range(steps):
        updates, state = step(params, state, params)
        params = optax.apply_updates(params, updates)
    return jl.evaluation_params(state, params), params


def _close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-6), got, wanted)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", RULES)
def test_of_divided_states(name, kind):
    wanted, _ = _after(RULES[name](), _params())
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    params = jax.device_put(_params(), NamedSharding(mesh, P()))
    got, params = _after(jl.zero(RULES[name](), mesh, "data", min_bytes=0), params)
    _close(got, wanted)
    for x, p in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        assert x.sharding.is_equivalent_to(p.sharding, x.ndim)


@pytest.mark.parametrize("name", RULES)
def test_of_groups(name):
    wanted, _ = _after(RULES[name](), {"w": _params()["w"]})
    got, params = _after(jl.partition({"w": RULES[name](), "*": jl.sgd(0.1)}), _params())
    np.testing.assert_allclose(got["w"], wanted["w"], rtol=1e-6)
    np.testing.assert_array_equal(got["odd"], params["odd"])
    both, _ = _after(jl.partition({"w": RULES[name](), "*": RULES["lookahead"]()}), _params())
    assert bool(jnp.any(both["odd"] != params["odd"])) or name == "lookahead"


@pytest.mark.parametrize(
    ("name", "field"), [("schedule_free", "z"), ("lookahead", "slow"), ("ema_of_params", "ema")]
)
def test_of_stored_states(name, field):
    wanted, _ = _after(RULES[name](), _params())
    got, _ = _after(jl.stored(RULES[name](), **{field: jl.bfloat16()}), _params())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02), got, wanted)


def test_of_bfloat16_parameters_in_float32():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), _params())
    got, _ = _after(RULES["ema_of_params"](), params)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}


def test_what_has_no_averages_and_what_is_of_other_parameters():
    with pytest.raises(ValueError, match="evaluation_params: the state has no averages"):
        jl.evaluation_params(jl.sgd(0.1).init(_params()), _params())
    with pytest.raises(ValueError, match="the averages are of other parameters"):
        jl.evaluation_params(RULES["lookahead"]().init(_params()), {"x": jnp.ones(3)})
