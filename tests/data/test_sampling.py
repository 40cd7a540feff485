"""Poisson samples: each example by itself, with one rate, in one shape."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_large.data import Dataset, PoissonBatches, room_for


def _numbers(size):
    def example(index):
        return {"x": np.full(2, index)}

    return Dataset("n", size, example, {"x": np.zeros((1, 2))}, 1, "example", {})


def test_every_example_is_drawn_at_the_rate_and_for_itself():
    batches = PoissonBatches(_numbers(200), 40, room_for(200, 40, 8), secret=5)
    table = np.zeros((3000, 200), bool)
    for n, row in enumerate(table):
        row[batches.draw(n)] = True
    rates = table.mean(axis=0)
    assert abs(table.mean() - 0.2) < 0.002
    assert np.abs(rates - 0.2).max() < 5 * (0.2 * 0.8 / 3000) ** 0.5
    sizes = table.sum(axis=1)
    assert abs(sizes.var() - 200 * 0.2 * 0.8) < 3.0  # of a binomial: examples do not know of each other
    pairs = np.corrcoef(table[:, :40].T) - np.eye(40)
    assert np.abs(pairs).max() < 5 / 3000**0.5


@given(st.integers(1, 500), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_batches_have_one_shape_and_say_who_is_there(size, secret, data):
    expected = data.draw(st.integers(1, size))
    room = room_for(size, expected, 4)
    assert room % 4 == 0
    assert expected <= room <= size + 3
    batches = PoissonBatches(_numbers(size), expected, room, secret)
    for number in range(3):
        batch = next(batches)
        assert batch["x"].shape == (room, 2)
        drawn = batch["x"][batch["there"], 0]
        assert len(set(drawn)) == len(drawn)
        assert (batch["draw"] == number).all()
        assert sorted(drawn) == sorted(batches.draw(number))


def test_rows_and_positions_are_of_the_same_draws():
    def made(**how):
        return PoissonBatches(_numbers(100), 20, 48, 9, **how)

    whole = made()
    for _ in range(3):
        next(whole)
    position, expected = whole.position(), next(whole)
    part = made(rows=range(1, 48, 3))
    part.go_to(position)
    found = next(part)
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x[1::3])
    other = PoissonBatches(_numbers(100), 20, 48, 10)
    assert not np.array_equal(other.draw(0), made().draw(0))
