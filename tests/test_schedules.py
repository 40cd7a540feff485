import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

_CYCLE = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 5}
_OPTAX = [  # of each of optax's, its arguments
    ("constant_schedule", (0.1,), {}),
    ("cosine_decay_schedule", (0.1, 10), {"alpha": 0.1, "exponent": 2.0}),
    ("cosine_onecycle_schedule", (10, 0.1), {}),
    ("exponential_decay", (0.1, 10, 0.5), {}),
    ("exponential_decay", (0.1, 4, 0.5), {"transition_begin": 3, "staircase": True, "end_value": 0.03}),
    ("exponential_decay", (0.1, 0, 0.5), {}),
    ("linear_onecycle_schedule", (10, 0.1), {}),
    ("linear_schedule", (0.1, 0.0, 10), {}),
    ("linear_schedule", (1, 0, 10, 3), {}),
    ("piecewise_constant_schedule", (0.1, {3: 0.5}), {}),
    ("piecewise_interpolate_schedule", ("linear", 0.1, {3: 0.5}), {}),
    ("piecewise_interpolate_schedule", ("cosine", 0.1, {3: 0.5, 7: 2.0}), {}),
    ("polynomial_schedule", (0.1, 0.0, 2, 10), {}),
    ("polynomial_schedule", (0.1, 0.01, np.float32(0.5), 10), {"transition_begin": 2}),
    ("sgdr_schedule", ([_CYCLE] * 2,), {}),
    ("warmup_constant_schedule", (0.0, 0.1, 5), {}),
    ("warmup_cosine_decay_schedule", (0.0, 0.1, 5, 10), {"end_value": 0.01, "exponent": 2.0}),
    ("warmup_exponential_decay_schedule", (0.0, 0.1, 5, 10, 0.5), {}),
    (
        "warmup_exponential_decay_schedule",
        (0.0, 0.1, 5, 4, 0.5),
        {"transition_begin": 2, "staircase": True, "end_value": 0.03},
    ),
]
_OURS = {
    "cosine": lambda: jl.warmup_stable_decay(
        0.1, warmup_steps=3, stable_steps=3, decay_steps=5, shape="cosine"
    ),
    "cyclic": lambda: jl.cyclic(0.1, 0.2, half_period=3, shape="exp_range", decay=0.9),
    "inverse_sqrt": lambda: jl.inverse_sqrt(0.1, warmup_steps=4),
    "join": lambda: jl.join(
        [optax.cosine_decay_schedule(0.1, 10), 0.1, jl.power(1, 1, warmup_steps=3)], [3, 5]
    ),
    "one_cycle": lambda: jl.one_cycle(0.1, steps=12),
    "power": lambda: jl.power(0.1, 0.7, warmup_steps=4),
    "scaled_by_batch": lambda: jl.scaled_by_batch(
        optax.cosine_decay_schedule(0.1, 10), 64, base_batch_size=16
    ),
    "warmup": lambda: jl.warmup(optax.cosine_decay_schedule(0.1, 10), 4),
}


@pytest.mark.compat
@pytest.mark.parametrize(("name", "args", "options"), _OPTAX)
def test_optax_schedules_work_under_strict_promotion(name, args, options):
    ours, theirs = getattr(jl, name)(*args, **options), getattr(optax, name)(*args, **options)
    with jax.numpy_dtype_promotion("standard"):
        expected = [float(theirs(jnp.int32(t))) for t in range(15)]
    np.testing.assert_allclose(_values(ours, 15), expected, rtol=1e-5, atol=1e-8)


def test_every_schedule_of_optax_is_here():
    theirs = {name for name in dir(optax.schedules) if name.endswith(("_schedule", "_schedules", "_decay"))}
    theirs -= {name for name in theirs if name.startswith("_")}
    assert theirs <= set(jl.schedules.__all__)
    assert {name for name, _, _ in _OPTAX} | {"join_schedules"} == {
        make for make in jl.schedules.__all__ if hasattr(optax, make)
    }


def _cases():
    theirs = [lambda n=n, a=a, o=o: getattr(jl, n)(*a, **o) for n, a, o in _OPTAX]
    return [*theirs, *_OURS.values()]


@pytest.mark.compat
@pytest.mark.parametrize("make", _cases())
def test_every_kind_of_count(make):
    schedule = make()
    expected = _values(schedule, 14)
    for t in (0, 4, 9, 13):
        for count in (t, np.int32(t), np.int64(t), jnp.int32(t), np.array(t, np.int32)):
            value = jnp.asarray(schedule(count))
            np.testing.assert_allclose(float(value), expected[t], rtol=1e-5, atol=1e-8)
        np.testing.assert_allclose(float(jax.jit(schedule)(t)), expected[t], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("steps", [10, 41, 47])
def test_a_polynomial_ends_where_it_says(steps):
    """Under jit 1 - steps * (1 / steps) is not always 0."""
    for schedule in (jl.linear_schedule(1, 0, steps), jl.polynomial_schedule(1.0, 0.0, 0.5, steps, 3)):
        values = _values(schedule, steps + 9)
        assert (values[-5:] == 0.0).all()
        assert (values >= 0.0).all()


@pytest.mark.parametrize("name", _OURS)
def test_values_are_in_the_scalar_dtype(name, x64):
    assert _OURS[name]()(jnp.int32(3)).dtype == jnp.float64
    with jax.numpy_dtype_promotion("standard"), jax.enable_x64(False):
        assert _OURS[name]()(jnp.int32(3)).dtype == jnp.float32


def _values(schedule, steps):
    """Over the first steps, mapped and under jit."""
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps, dtype=jnp.int32)))


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


_FALLS = {
    "linear": lambda u: 1 - u,
    "cosine": lambda u: (1 + np.cos(np.pi * u)) / 2,
    "sqrt": lambda u: 1 - np.sqrt(u),
    "square": lambda u: 1 - u**2,
}


@pytest.mark.parametrize("shape", _FALLS)
def test_the_shapes_of_the_fall(shape):
    rate = jl.warmup_stable_decay(
        2.0, warmup_steps=4, stable_steps=6, decay_steps=7, end_value=0.5, shape=shape
    )
    t = np.arange(22.0)
    fall = 0.5 + 1.5 * _FALLS[shape](np.clip((t - 10) / 7, 0, 1))
    np.testing.assert_allclose(_values(rate, 22), np.where(t < 10, 2 * np.minimum(t / 4, 1), fall), rtol=1e-6)


def test_the_exponential_fall():
    rate = jl.warmup_stable_decay(
        2.0, warmup_steps=0, stable_steps=3, decay_steps=8, end_value=2e-6, shape="exponential"
    )
    expected = np.geomspace(2.0, 2e-6, 9)
    np.testing.assert_allclose(_values(rate, 14), [2.0] * 3 + [*expected] + [2e-6] * 2, rtol=3e-6)
    with pytest.raises(ValueError, match=r"end_value is out of range, got 0.0; the exponential shape takes"):
        jl.warmup_stable_decay(1.0, warmup_steps=1, stable_steps=1, decay_steps=1, shape="exponential")
    with pytest.raises(ValueError, match="shape is unknown, got 'cubic'; one of 'linear', "):
        jl.warmup_stable_decay(1.0, warmup_steps=1, stable_steps=1, decay_steps=1, shape="cubic")


def test_a_small_end_is_not_rounded_away():
    for shape in _FALLS:
        rate = jl.warmup_stable_decay(
            1.0, warmup_steps=2, stable_steps=2, decay_steps=3, end_value=1e-9, shape=shape
        )
        assert float(rate(7)) == np.float32(1e-9)


def test_power():
    rate, t = jl.power(3.0, 0.51, warmup_steps=9, init_value=1.0), np.arange(1, 40.0)
    expected = np.where(t < 9, 1 + 2 * t / 9, 3 * (9 / t) ** 0.51)
    np.testing.assert_allclose(_values(rate, 40)[1:], expected, rtol=1e-6)
    root, same = jl.inverse_sqrt(3.0, warmup_steps=9), jl.power(3.0, 0.5, warmup_steps=9)
    np.testing.assert_allclose(_values(same, 40), _values(root, 40), rtol=1e-6)


def _one_cycle(t, peak, steps, fraction, first, last, shape):
    """PyTorch's OneCycleLR in two phases, in float64."""

    def eased(a, b, part):
        return b + (a - b) / 2 * (math.cos(math.pi * part) + 1) if shape == "cosine" else a + (b - a) * part

    turn, low = fraction * steps - 1, peak / first
    if t <= turn:
        return eased(low, peak, t / turn)
    return eased(peak, low / last, (t - turn) / (steps - 1 - turn))


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize(("steps", "fraction"), [(20, 0.3), (17, 0.37), (100, 0.5), (2, 0.9)])
def test_one_cycle(shape, steps, fraction):
    rate = jl.one_cycle(0.5, steps=steps, warmup_fraction=fraction, shape=shape)
    expected = [_one_cycle(t, 0.5, steps, fraction, 25, 1e4, shape) for t in range(steps)]
    np.testing.assert_allclose(_values(rate, steps), expected, rtol=1e-5, atol=1e-7)
    assert float(rate(steps + 9)) == float(rate(steps - 1)) == np.float32(0.5 / 25 / 1e4)


def test_one_cycle_as_recorded_of_pytorch():
    rate = jl.one_cycle(1.0, steps=10, init_divisor=10.0, final_divisor=100.0)
    expected = [0.1, 0.55, 1.0, 0.950534, 0.811933, 0.611649, 0.389351, 0.189067, 0.050466, 0.001]
    np.testing.assert_allclose(_values(rate, 10), expected, rtol=1e-5)


def test_one_cycle_without_a_rise():
    assert float(jl.one_cycle(1.0, steps=5, warmup_fraction=0.0)(0)) == 1.0
    assert np.isfinite(_values(jl.one_cycle(1.0, steps=1), 3)).all()


@pytest.mark.parametrize("shape", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("half", [4, 7, 2.5])
def test_cyclic(shape, half):
    rate = jl.cyclic(0.1, 0.6, half_period=half, shape=shape, decay=0.97 if shape == "exp_range" else None)
    t = np.arange(60.0)
    cycle = np.floor(1 + t / (2 * half))
    x = 1 + t / (2 * half) - cycle
    height = np.where(x <= 0.5, x / 0.5, (x - 1) / -0.5)
    scale = {"triangular": 1.0, "triangular2": 0.5 ** (cycle - 1), "exp_range": 0.97**t}[shape]
    np.testing.assert_allclose(_values(rate, 60), 0.1 + 0.5 * height * scale, rtol=1e-5)


def test_cyclic_after_many_steps():
    rate = jl.cyclic(0.0, 1.0, half_period=7, shape="exp_range", decay=0.999999)
    t = 9_999_997
    assert float(rate(t)) == pytest.approx((1 - abs(t % 14 / 7 - 1)) * 0.999999**t, rel=1e-5)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"shape": "exp_range"}, "decay is missing with shape 'exp_range', got None; .* Pass decay=0.9999"),
        ({"decay": 0.9}, "decay is not used with shape 'triangular', got 0.9"),
        ({"decay": 1.5, "shape": "exp_range"}, r"decay is out of range, got 1.5; decay must be .* \(0, 1\]"),
        ({"half_period": 0}, "half_period is out of range, got 0"),
        ({"high": 0.05}, "low is above high, got 0.1 and 0.05"),
        ({"shape": "square"}, "shape is unknown"),
    ],
)
def test_cycles_that_are_none(how, says):
    with pytest.raises(ValueError, match=rf"^cyclic: {says}"):
        jl.cyclic(**{"low": 0.1, "high": 0.2, "half_period": 3, **how})


def test_join():
    rate = jl.join([jl.linear_schedule(0.0, 1.0, 4), 0.25, lambda t: jnp.int32(2), lambda t: t], [4, 6, 6])
    assert _values(rate, 9).tolist() == [0.0, 0.25, 0.5, 0.75, 0.25, 0.25, 0.0, 1.0, 2.0]
    parts = [jl.constant_schedule(0.1), jl.linear_schedule(0.1, 0.0, 5)]
    np.testing.assert_array_equal(_values(jl.join(parts, [3]), 9), _values(jl.join_schedules(parts, [3]), 9))


@pytest.mark.parametrize(
    ("schedules", "boundaries", "error", "says"),
    [
        ([0.1, 0.2], [], ValueError, "boundaries do not fit the schedules, got 0 for 2; there is one fewer"),
        ([0.1], [3], ValueError, "boundaries do not fit the schedules, got 1 for 1"),
        ([], [], ValueError, "boundaries do not fit the schedules, got 0 for 0"),
        ([0.1] * 3, [5, 3], ValueError, r"boundaries are not in order, got \[5, 3\]; each is at least"),
        ([0.1] * 2, [-1], ValueError, r"boundaries are not in order, got \[-1\]"),
        ([0.1] * 2, [1.5], TypeError, r"boundaries\[0\] is no whole number, got 1.5"),
        ([0.1, "x"], [1], TypeError, r"schedules\[1\] is not a number, got 'x'"),
    ],
)
def test_what_cannot_be_joined(schedules, boundaries, error, says):
    with pytest.raises(error, match=f"^join: {says}"):
        jl.join(schedules, boundaries)


def test_warmup():
    rate = jl.warmup(jl.exponential_decay(0.8, 1, 0.5), 4, init_value=0.4)
    expected = [0.4, 0.5, 0.6, 0.7, 0.8, 0.4, 0.2]
    np.testing.assert_allclose(_values(rate, 7), expected, rtol=1e-6)
    np.testing.assert_allclose(_values(jl.warmup(0.5, 2), 4), [0.0, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(_values(jl.warmup(0.5, 0), 2), [0.5, 0.5])
    with pytest.raises(TypeError, match="warmup: schedule is not a number, got None"):
        jl.warmup(lambda count: None, 2)(0)


def test_rates_for_other_batches():
    assert jl.scaled_by_batch(0.1, 64, base_batch_size=256) == 0.05
    assert jl.scaled_by_batch(0.1, 512, base_batch_size=256, power=1) == 0.2
    rate = jl.scaled_by_batch(jl.inverse_sqrt(1.0, warmup_steps=4), 64, base_batch_size=16)
    np.testing.assert_allclose(_values(rate, 17)[[2, 4, 16]], [1.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="scaled_by_batch: batch_size is out of range, got 0"):
        jl.scaled_by_batch(0.1, 0, base_batch_size=1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_traced_arguments(dtype):
    """As `inject_hyperparams` passes them."""

    @jax.jit
    def values(peak, low, end):
        return (
            jl.warmup_stable_decay(
                peak, warmup_steps=2, stable_steps=2, decay_steps=2, end_value=end, shape="exponential"
            )(4),
            jl.power(peak, low, warmup_steps=4)(4),
            jl.one_cycle(peak, steps=11, warmup_fraction=low)(10),
            jl.cyclic(low, peak, half_period=4, shape="exp_range", decay=low)(0),
            jl.warmup(peak, 3)(3),
            jl.inverse_sqrt(peak, warmup_steps=peak)(1),
        )

    got = [float(x) for x in values(dtype(1.0), dtype(0.5), dtype(0.25))]
    np.testing.assert_allclose(got, [1.0, 1.0, 4e-6, 0.5, 1.0, 1.0], rtol=1e-6)
