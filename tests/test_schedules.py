import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

_MADE = {
    "constant_schedule": (0.1,),
    "cosine_decay_schedule": (0.1, 10),
    "cosine_onecycle_schedule": (10, 0.1),
    "exponential_decay": (0.1, 10, 0.5),
    "linear_onecycle_schedule": (10, 0.1),
    "linear_schedule": (0.1, 0.0, 10),
    "piecewise_constant_schedule": (0.1, {3: 0.5}),
    "piecewise_interpolate_schedule": ("linear", 0.1, {3: 0.5}),
    "polynomial_schedule": (0.1, 0.0, 2, 10),
    "sgdr_schedule": ([{"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 5}] * 2,),
    "warmup_constant_schedule": (0.0, 0.1, 5),
    "warmup_cosine_decay_schedule": (0.0, 0.1, 5, 10),
    "warmup_exponential_decay_schedule": (0.0, 0.1, 5, 10, 0.5),
}


@pytest.mark.compat
@pytest.mark.parametrize("name", sorted(_MADE))
def test_optax_schedules_work_under_strict_promotion(name):
    ours, theirs = getattr(jl, name)(*_MADE[name]), getattr(optax, name)(*_MADE[name])
    with jax.numpy_dtype_promotion("standard"):
        expected = [float(theirs(jnp.int32(t))) for t in range(15)]
    got = [float(jnp.asarray(jax.jit(ours)(jnp.int32(t)))) for t in range(15)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_joined_schedules():
    joined = jl.join_schedules([jl.constant_schedule(0.1), jl.linear_schedule(0.1, 0.0, 5)], [3])
    assert float(joined(jnp.int32(8))) == 0.0


def test_the_trapezoid():
    rate = jl.warmup_stable_decay(
        2.0, warmup_steps=4, stable_steps=6, decay_steps=5, init_value=1.0, end_value=0.5
    )
    expected = np.interp(np.arange(20), [0, 4, 10, 15], [1.0, 2.0, 2.0, 0.5])
    np.testing.assert_allclose([float(rate(t)) for t in range(20)], expected, rtol=1e-6)


@pytest.mark.parametrize(("warmup", "decay"), [(0, 0), (0, 3), (3, 0)])
def test_the_trapezoid_with_empty_parts(warmup, decay):
    rate = jl.warmup_stable_decay(1.0, warmup_steps=warmup, stable_steps=2, decay_steps=decay)
    values = [float(rate(t)) for t in range(warmup + 2 + decay + 1)]
    assert max(values) == 1.0
    assert values[-1] == 0.0


def test_inverse_square_root():
    rate = jl.inverse_sqrt(3.0, warmup_steps=9)
    np.testing.assert_allclose(float(rate(36)), 1.5, rtol=1e-6)
    np.testing.assert_allclose(float(rate(3)), 1.0, rtol=1e-6)
