"""Clipped, summed, noisy: what an example can move, and whose noise it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl

_PARAMS = {"a": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "b": jnp.linspace(0.1, 0.4, 4)}


def _loss(params, example):
    return jnp.sum(
        jnp.tanh(example["x"] @ params["a"].astype(jnp.float32) + params["b"].astype(jnp.float32)) ** 2
    )


def _batch(count, seed=0, scale=3.0):
    return {"x": scale * jax.random.normal(jax.random.key(seed), (count, 3))}


def _gradient(clip=0.5, noise=0.0, expected=10.0, seed=0, **more):
    return jl.private_gradients(_loss, clip, noise, jax.random.key(seed), expected, **more)


def _numpy_sum(batch, clip, rows):
    """One example at a time, in float64 from float32 gradients."""
    total = None
    for n in rows:
        grads = jax.grad(_loss)(_PARAMS, {"x": batch["x"][n]})
        flat = [np.asarray(g, np.float64) for g in jax.tree.leaves(grads)]
        norm = np.sqrt(sum(np.sum(g**2) for g in flat))
        flat = [g * min(1.0, clip / norm) for g in flat]
        total = flat if total is None else [a + b for a, b in zip(total, flat, strict=True)]
    return total


@pytest.mark.parametrize("size", [None, 1, 3, 7, 20])
def test_the_sum_of_clipped_gradients(size):
    batch, mask = _batch(13), np.arange(13) % 4 != 1
    grads, report = jax.jit(_gradient(microbatch_size=size))(_PARAMS, batch, 0, mask=mask)
    expected = _numpy_sum(batch, 0.5, np.flatnonzero(mask))
    for g, x in zip(jax.tree.leaves(grads), expected, strict=True):
        np.testing.assert_allclose(g, x / 10.0, rtol=2e-5, atol=1e-6)
    norms = [
        np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(jax.grad(_loss)(_PARAMS, {"x": x}))))
        for x in batch["x"]
    ]
    assert int(report.examples) == mask.sum()
    assert int(report.clipped) == sum(n > 0.5 for n, there in zip(norms, mask, strict=True) if there)
    losses = [float(_loss(_PARAMS, {"x": x})) for x in batch["x"][mask]]
    assert float(report.loss) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("clip", [1e-3, 0.5, 40.0])
def test_no_example_moves_the_sum_by_more_than_the_clip(dtype, clip):
    """Also those whose gradients are as long as a dtype can hold."""
    params = jax.tree.map(lambda p: p.astype(dtype), _PARAMS)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    scale = jnp.array([1e-6, 1.0, 1e3, 1e4, 0.3, 30.0])

    def loss(p, example):
        return jnp.sum(p["a"].astype(jnp.float32) * example["x"]) * example["s"]

    made = jl.private_gradients(loss, clip, 0.0, jax.random.key(0), 1.0)
    batch = {"x": jax.random.normal(jax.random.key(1), (6, 3, 4)), "s": scale}
    for left_out in range(6):
        mask = jnp.arange(6) != left_out
        # of wide parameters, so that the results are not rounded
        both = [made(wide, batch, 0, mask=m)[0] for m in (jnp.ones(6, bool), mask)]
        moved = np.sqrt(
            sum(
                np.sum((np.asarray(a, np.float64) - b) ** 2)
                for a, b in zip(*map(jax.tree.leaves, both), strict=True)
            )
        )
        assert moved <= clip * (1 + 3e-6)  # of which a sum of six is rounded by 1e-6
    alone, _ = made(params, jax.tree.map(lambda x: x[3:4], batch), 0)
    assert jax.tree.leaves(alone)[0].dtype == dtype


def test_examples_that_are_not_finite_count_as_zero_and_are_reported():
    batch = _batch(6)
    bad = {"x": batch["x"].at[2, 0].set(jnp.nan).at[4, 1].set(jnp.inf)}
    good = np.array([0, 1, 3, 5])
    grads, report = _gradient()(_PARAMS, {"x": bad["x"].at[4].set(jnp.nan)}, 0)
    for g, x in zip(jax.tree.leaves(grads), _numpy_sum(batch, 0.5, good), strict=True):
        np.testing.assert_allclose(g, x / 10.0, rtol=2e-5, atol=1e-6)
    assert (int(report.examples), int(report.nonfinite)) == (6, 2)
    assert np.isfinite(float(report.loss))


def test_an_empty_batch_is_noise_alone():
    grads, report = _gradient(noise=1.0)(_PARAMS, _batch(4), 3, mask=jnp.zeros(4, bool))
    assert int(report.examples) == 0
    assert float(report.loss) == 0.0
    assert all(float(jnp.std(g)) > 0 for g in jax.tree.leaves(grads))


def test_the_noise_has_its_deviation():
    """Over 10^5 draws, in two leaves, within 1 %; it does not depend on the batch."""
    params = {"a": jnp.zeros((250, 200)), "b": jnp.zeros(50_000)}
    made = jl.private_gradients(lambda p, x: jnp.sum(p["b"][:2] * x), 2.0, 1.5, jax.random.key(3), 8.0)
    grads, _ = jax.jit(made)(params, jnp.zeros((4, 2)), 0)
    every = np.concatenate([np.ravel(x) for x in jax.tree.leaves(grads)]) * 8.0
    assert every.size == 100_000
    assert every.std() == pytest.approx(3.0, rel=0.01)
    assert abs(every.mean()) < 4 * 3.0 / np.sqrt(every.size)
    assert np.mean(np.abs(every) < 3.0) == pytest.approx(0.6827, abs=0.006)


def test_no_two_runs_steps_or_leaves_share_a_draw():
    params = {"a": jnp.zeros(64), "b": jnp.zeros(64), "c": {"a": jnp.zeros(64)}}
    nothing = jnp.zeros((1, 2))
    seen = []
    for seed in (0, 1, 2):
        made = jl.private_gradients(lambda p, x: jnp.sum(p["a"][:2] * x), 1.0, 1.0, jax.random.key(seed), 1.0)
        for step in (0, 1, 2, 1000, 2**31 - 1):
            seen += [np.asarray(x) for x in jax.tree.leaves(made(params, nothing, step)[0])]
    values = np.concatenate(seen)
    assert len(np.unique(values)) > 0.999 * len(values)  # of 24 bits each, two may meet by chance
    table = np.corrcoef(np.stack(seen))
    assert np.abs(table - np.eye(len(seen))).max() < 0.6


def test_a_restart_makes_the_same_step_again_and_no_other():
    made, again = _gradient(noise=1.0), _gradient(noise=1.0)
    one, _ = jax.jit(made)(_PARAMS, _batch(4), 7)
    other, _ = jax.jit(again)(_PARAMS, _batch(4), jnp.int32(7))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("size", [None, 1])
@pytest.mark.parametrize("how", ["jit", "shard_map", "typed", "pmap"])
def test_eight_devices_have_the_noise_of_one(how, size, mesh8):
    """Typed: what varies over the axis is known, and gradients would be summed before they are clipped."""
    batch, mask = _batch(16), np.arange(16) % 5 != 2
    alone, report = _gradient(noise=1.0)(_PARAMS, batch, 5, mask=mask)
    if how == "jit":
        place = NamedSharding(mesh8, P("data"))
        given = jax.device_put((batch, jnp.asarray(mask)), place)
        found, told = jax.jit(lambda b, m: _gradient(noise=1.0, microbatch_size=size)(_PARAMS, b, 5, mask=m))(
            *given
        )
    else:
        made = _gradient(noise=1.0, axis_name="data", microbatch_size=size)

        def own(b, m):
            return made(_PARAMS, b, 5, mask=m)

        if how == "pmap":
            cut = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), (batch, jnp.asarray(mask)))
            found, told = jax.pmap(own, axis_name="data")(*cut)
            assert all((x == x[:1]).all() for x in jax.tree.leaves(found))
            found, told = jax.tree.map(lambda x: x[0], (found, told))
        else:
            mapped = jax.shard_map(
                own, mesh=mesh8, in_specs=P("data"), out_specs=P(), check_vma=how == "typed"
            )
            found, told = jax.jit(mapped)(batch, jnp.asarray(mask))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, alone)
    assert [int(x) for x in told[1:]] == [int(x) for x in report[1:]]


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        ({"clip": 0.0}, ValueError, "clip is out of range, got 0.0; clip must be a number > 0"),
        ({"clip": 1e-22}, ValueError, "clip is too small, got 1e-22"),
        ({"clip": -1.0}, ValueError, "clip is out of range, got -1.0"),
        ({"noise_multiplier": -0.1}, ValueError, "noise_multiplier is out of range"),
        ({"expected_batch": 0}, ValueError, "expected_batch is out of range"),
        ({"key": None}, TypeError, "key is no random key, got NoneType. Pass jax.random.key"),
        ({"key": 0}, TypeError, "key is no random key, got int"),
        ({"loss_fn": None}, TypeError, "loss_fn is no function, got None"),
        ({"microbatch_size": 0}, ValueError, "microbatch_size is out of range, got 0"),
    ],
)
def test_what_is_refused(change, error, expected):
    given = {
        "loss_fn": _loss,
        "clip": 1.0,
        "noise_multiplier": 1.0,
        "key": jax.random.key(0),
        "expected_batch": 8,
    }
    with pytest.raises(error, match=expected):
        jl.private_gradients(**{**given, **change})
    with pytest.raises(TypeError, match="key"):
        jl.private_gradients(_loss, clip=1.0, noise_multiplier=1.0, expected_batch=8)


def test_batches_that_are_none():
    made = _gradient()
    with pytest.raises(ValueError, match=r"no one number of examples, got \[3, 4\]"):
        made(_PARAMS, {"x": jnp.ones((3, 3)), "y": jnp.ones(4)}, 0)
    with pytest.raises(ValueError, match=r"mask has shape \(2,\); one for each of 3 examples"):
        made(_PARAMS, {"x": jnp.ones((3, 3))}, 0, mask=jnp.ones(2, bool))


def test_steps_are_whole_numbers():
    with pytest.raises(TypeError, match=r"step is no whole number, got 0.5"):
        _gradient()(_PARAMS, _batch(2), 0.5)
