"""The order of examples: a permutation, the same for every number of processes, taken up where it was left."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxopt_large.data import Batches, DataError, Dataset
from jaxopt_large.data.mixture import mixture


def _numbers(size, name="numbers", first=0, context=4):
    def example(index):
        return {"tokens": np.full(context + 1, first + index)}

    return Dataset(
        name=name,
        size=size,
        example=example,
        validation={"tokens": np.zeros((2, context + 1), np.int32)},
        tokens_per_example=context,
        unit="token",
        facts={"sha256": name, "train_tokens": size * context},
    )


def _taken(batches, count):
    return np.stack([next(batches)["tokens"][:, 0] for _ in range(count)])


@given(st.integers(1, 200), st.integers(0, 2**32 - 1), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_every_epoch_is_a_permutation(size, seed, batch):
    count = -(-3 * size // batch)
    seen = _taken(Batches(_numbers(size), batch, seed), count).ravel()
    epochs = [seen[k * size : (k + 1) * size] for k in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 20:
        assert not np.array_equal(epochs[0], epochs[1])


def test_the_order_takes_no_memory():
    batches = Batches(_numbers(10**12), 8, 3)
    seen = _taken(batches, 4)
    assert len(np.unique(seen)) == 32
    assert seen.max() > 2**33


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_read_their_rows_of_the_same_batches(processes):
    whole = _taken(Batches(_numbers(50), 6, 1), 20)
    rows = [list(range(p, 6, processes)) for p in range(processes)]
    parts = [_taken(Batches(_numbers(50), 6, 1, rows=mine), 20) for mine in rows]
    for mine, part in zip(rows, parts, strict=True):
        np.testing.assert_array_equal(part, whole[:, mine])


def test_a_position_goes_on_with_other_rows():
    batches = Batches(_numbers(50), 6, 1)
    _taken(batches, 5)
    position = batches.position()
    expected = _taken(batches, 7)
    others = Batches(_numbers(50), 6, 1, rows=[1, 4])
    others.go_to(position)
    np.testing.assert_array_equal(_taken(others, 7), expected[:, [1, 4]])


@pytest.mark.parametrize("other", [4, 6, 9])
def test_a_position_goes_on_with_batches_of_another_size(other):
    whole = _taken(Batches(_numbers(50), 1, 1), 200).ravel()
    batches = Batches(_numbers(50), 6, 1)
    _taken(batches, 5)
    others = Batches(_numbers(50), other, 1)
    others.go_to(batches.position())
    np.testing.assert_array_equal(_taken(others, 3).ravel(), whole[30 : 30 + 3 * other])
    assert others.position() == {"examples": 30 + 3 * other}
    before = Batches(_numbers(50), 6, 1)
    before.go_to({"next_index": 5})  # as it was said once
    np.testing.assert_array_equal(_taken(before, 1).ravel(), whole[30:36])


def test_a_mixture_has_the_shares_of_its_weights():
    parts = {"a": _numbers(30), "b": _numbers(10, first=1000), "c": _numbers(400, first=2000)}
    mixed = mixture(parts, {"a": 1.0, "b": 2.0, "c": 5.0})
    seen = _taken(Batches(mixed, 8, 7), 100)
    for row in seen:  # as nearly as can be in each batch
        assert abs(np.sum(row < 1000) - 1) <= 1
        assert abs(np.sum((row >= 1000) & (row < 2000)) - 2) <= 1
    flat = seen.ravel()
    assert [np.sum(flat < 1000), np.sum((flat >= 1000) & (flat < 2000))] == [100, 200]
    small = flat[(flat >= 1000) & (flat < 2000)]
    for epoch in range(20):
        assert sorted(small[epoch * 10 : epoch * 10 + 10]) == list(range(1000, 1010))
    again = Batches(mixed, 8, 7)
    _taken(again, 50)
    resumed = Batches(mixed, 8, 7)
    resumed.go_to(again.position())
    np.testing.assert_array_equal(_taken(resumed, 50), seen[50:])


def test_alike_parts_have_orders_of_their_own():
    mixed = mixture({"a": _numbers(100), "b": _numbers(100)}, {"a": 1.0, "b": 1.0})
    seen = _taken(Batches(mixed, 2, 7), 100)
    assert sorted(seen[:, 0]) == sorted(seen[:, 1]) == list(range(100))
    assert not np.array_equal(seen[:, 0], seen[:, 1])


def test_what_a_mixture_is_and_what_it_refuses():
    parts = {"a": _numbers(30, "a"), "b": _numbers(10, "b")}
    mixed = mixture(parts, {"a": 3.0, "b": 1.0})
    assert mixed.validation["tokens"].shape == (4, 5)
    assert mixed.facts["train_tokens"] == 160
    assert [int(mixed.example(n)["tokens"][0]) for n in (0, 29, 30, 39)] == [0, 29, 0, 9]
    assert mixed.facts["sha256"] != mixture(parts, {"a": 1.0, "b": 3.0}).facts["sha256"]
    with pytest.raises(DataError, match=r"data.weights do not match data.parts, got a; one for each of a, b"):
        mixture(parts, {"a": 1.0})
    with pytest.raises(DataError, match=r"parts of a mixture differ in data.context, got a: 4, b: 5"):
        mixture({"a": _numbers(3), "b": _numbers(3, context=5)}, {"a": 1.0, "b": 1.0})


def test_masks_of_some_parts_are_masks_of_all():
    import dataclasses

    plain = _numbers(30)
    masked = dataclasses.replace(
        plain,
        example=lambda n: {**plain.example(n), "mask": np.arange(4) < 2},
        validation={**plain.validation, "mask": np.zeros((2, 4), bool)},
    )
    mixed = mixture({"a": plain, "b": masked}, {"a": 1.0, "b": 1.0})
    batch = next(Batches(mixed, 2, 7))
    assert sorted(batch["mask"].sum(axis=1).tolist()) == [2, 4]
    assert mixed.validation["mask"].sum() == 8
