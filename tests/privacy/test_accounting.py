"""What a budget buys, beside numbers of others."""

import math

import pytest

import jaxopt_large as jl
from jaxopt_large.privacy import steps_within


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "method", "expected"),
    [
        (0.01, 1.0, 1000, "rdp", 2.1014),
        (0.01, 1.0, 1000, "pld", 1.8282),
        (0.04, 1.5, 100, "rdp", 1.4845),
        (0.04, 1.5, 100, "pld", 1.3141),
    ],
)
def test_what_is_spent(rate, noise, steps, method, expected):
    given = {
        "sampling_rate": rate,
        "noise_multiplier": noise,
        "steps": steps,
        "delta": 1e-5,
        "method": method,
    }
    assert round(jl.privacy_spent(**given), 4) == expected


def test_one_step_on_all_data_is_the_gaussian_mechanism():
    """Against its exact curve (Balle and Wang 2018), solved here by bisection."""

    def delta_of(epsilon, noise):
        def phi(x):
            return 0.5 * math.erfc(-x / math.sqrt(2))

        half = 1 / (2 * noise)
        return phi(half - epsilon * noise) - math.exp(epsilon) * phi(-half - epsilon * noise)

    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_of(middle, 2.0) > 1e-5 else (low, middle)
    found = jl.privacy_spent(sampling_rate=1.0, noise_multiplier=2.0, steps=1, delta=1e-5)
    assert found == pytest.approx(high, rel=2e-3)


def test_more_steps_spend_more_and_noise_spends_less():
    given = {"sampling_rate": 0.02, "delta": 1e-5}
    spent = [jl.privacy_spent(noise_multiplier=1.0, steps=n, **given) for n in (0, 1, 10, 100)]
    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert jl.privacy_spent(noise_multiplier=2.0, steps=100, **given) < spent[-1]
    assert jl.privacy_spent(noise_multiplier=0.0, steps=1, **given) == math.inf


@pytest.mark.parametrize("method", ["rdp", "pld"])
def test_noise_for_a_budget_is_enough_and_not_more(method):
    given = {"sampling_rate": 0.04, "steps": 200, "delta": 1e-5, "method": method}
    noise = jl.noise_for_budget(epsilon=3.0, **given)
    assert jl.privacy_spent(noise_multiplier=noise, **given) <= 3.0
    assert jl.privacy_spent(noise_multiplier=noise * 0.999, **given) > 3.0


def test_steps_within_a_budget():
    given = {"sampling_rate": 0.04, "noise_multiplier": 1.5, "delta": 1e-5, "method": "rdp"}
    most = steps_within(epsilon=1.4846, most=500, **given)
    assert jl.privacy_spent(steps=most, **given) <= 1.4846 < jl.privacy_spent(steps=most + 1, **given)
    assert most == 100
    assert steps_within(epsilon=1.4846, most=50, **given) == 50
    assert steps_within(epsilon=1e-3, most=50, **given) == 0


_GIVEN = {"sampling_rate": 0.1, "noise_multiplier": 1.0, "steps": 10, "delta": 1e-5}


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"sampling_rate": 0.0}, ValueError, r"sampling_rate is out of range, got 0.0; .* \(0, 1\]"),
        ({"sampling_rate": 1.5}, ValueError, "sampling_rate is out of range"),
        ({"noise_multiplier": -1.0}, ValueError, "noise_multiplier is out of range"),
        ({"delta": 0.0}, ValueError, r"delta is out of range, got 0.0; .* \(0, 1\)"),
        ({"delta": 1.0}, ValueError, "delta is out of range"),
        ({"steps": -1}, TypeError, "steps is no number of steps, got -1"),
        ({"steps": 1.5}, TypeError, "steps is no number of steps, got 1.5"),
        ({"method": "moments"}, ValueError, "method is unknown, got 'moments'; 'pld' or 'rdp'"),
        (
            {"delta": "small", "sampling_rate": 2.0},
            TypeError,
            r"delta is not a number(.|\n)*sampling_rate is out",
        ),
    ],
)
def test_what_is_refused(change, error, expected):
    with pytest.raises(error, match=expected):
        jl.privacy_spent(**{**_GIVEN, **change})
    if "noise_multiplier" not in change:
        given = {k: v for k, v in {**_GIVEN, **change}.items() if k != "noise_multiplier"}
        with pytest.raises(error, match=expected):
            jl.noise_for_budget(epsilon=1.0, **given)


def test_budgets_that_are_none():
    given = {k: v for k, v in _GIVEN.items() if k != "noise_multiplier"}
    with pytest.raises(ValueError, match=r"epsilon is out of range, got 0.0"):
        jl.noise_for_budget(epsilon=0.0, **given)
    assert jl.noise_for_budget(epsilon=1.0, **{**given, "steps": 0}) == 0.0
