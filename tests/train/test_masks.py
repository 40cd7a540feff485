"""Targets that do not count: all ways to run a step have the mean over those that do, wherever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_large._compat import make_mesh
from jaxopt_large.checkpoint._manifest import read_manifest
from jaxopt_large.data import Batches
from jaxopt_large.models.transformer import transformer
from jaxopt_large.train import plan_of, train
from jaxopt_large.train.planning import abstract_batch

from .runs import small

_SMALL = [
    "model={kind: transformer, vocabulary: 260, layers: 1, width: 32, heads: 2}",
    "optimizer.groups={'*': {rule: sgd, learning_rate: 0.5}}",
    "optimizer.clip=0.7",
    "train={steps: 3, batch: 16, eval_every: 3, checkpoint_every: 3}",
    "placement.mesh={data: 4}",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Documents of very different lengths, so that examples differ in targets too."""
    made = tmp_path_factory.mktemp("text")
    chance = np.random.default_rng(0)
    for n in range(120):
        size = int(chance.choice([1, 3, 14, 60]))
        (made / f"{n}.txt").write_bytes(chance.integers(32, 127, size).astype(np.uint8).tobytes())
    return (
        f"data={{kind: text, path: {made}, context: 64, validation_windows: 8, pack: true, end_of_text: 256}}"
    )


def _after(config, runs, console):
    summary = train(config, runs=runs, console=console)
    run = runs / config.name
    manifest = read_manifest(run / "checkpoints" / "step_00000003")
    import jaxopt_large as jl

    like = {
        name: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"])
        for name, a in manifest["arrays"].items()
        if name.startswith("params/")
    }
    found = jl.restore(
        run / "checkpoints" / "step_00000003",
        {n: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for n, a in manifest["arrays"].items()},
    )
    return {name: np.asarray(found[name]) for name in like}, summary


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, quiet):
    return _after(
        small(data, "placement.mesh={data: 1}", settings=_SMALL), tmp_path_factory.mktemp("whole"), quiet
    )


@pytest.fixture(scope="module")
def quiet():
    import io

    from rich.console import Console

    return Console(file=io.StringIO())


def test_the_loss_is_over_the_targets_that_count():
    """In one block and in several; a part of the batch in which none counts weighs nothing."""
    model = transformer(vocabulary=40, layers=1, width=16, heads=2)
    params = model.init(jax.random.key(0))
    for length in (12, 520):
        tokens = jax.random.randint(jax.random.key(1), (3, length + 1), 0, 40)
        mask = jax.random.bernoulli(jax.random.key(2), 0.3, (3, length)).at[1].set(False)
        loss, gradient = jax.value_and_grad(model.loss)(params, {"tokens": tokens, "mask": mask})
        x = np.asarray(mask)

        def single(params, row, t, tokens=tokens):
            """The loss of one target: a difference of means over prefixes."""
            seen = tokens[row : row + 1, : t + 2]
            only = jnp.zeros((1, t + 1), bool).at[0, t].set(True)
            return model.loss(params, {"tokens": seen, "mask": only})

        if length == 12:
            each = [single(params, row, t) for row, t in np.argwhere(x)]
            np.testing.assert_allclose(loss, np.mean(each), rtol=1e-6)
        everything = model.loss(params, {"tokens": tokens, "mask": jnp.ones_like(mask)})
        np.testing.assert_allclose(everything, model.loss(params, {"tokens": tokens}), rtol=1e-6)
        nothing = jax.value_and_grad(model.loss)(params, {"tokens": tokens, "mask": jnp.zeros_like(mask)})
        assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(nothing))
        assert np.isfinite(float(jnp.sum(gradient["embed"])))


@pytest.mark.parametrize(
    "how",
    [
        [],
        ["train.accumulate=4"],
        ["train.accumulate=2", "train.accumulation=deferred"],
        ["placement.zero=null"],
        ["placement.parallel=pmap"],
        ["placement.parallel=pmap", "placement.zero=null"],
        ["placement.parallel=pmap", "train.accumulate=2"],
        ["train.accumulate=2", "placement.zero=null", "placement.fsdp=data"],
    ],
    ids=lambda how: " ".join(how) or "jit",
)  # fmt: skip
def test_every_way_to_run_weighs_alike(how, data, whole, tmp_path, quiet):
    params, summary = _after(small(data, *how, settings=_SMALL), tmp_path, quiet)
    for name, x in whole[0].items():
        np.testing.assert_allclose(params[name], x, rtol=2e-4, atol=2e-6, err_msg=name)
    assert summary["final_validation_loss"] == pytest.approx(whole[1]["final_validation_loss"], rel=1e-5)


def test_parts_do_differ(data, whole):
    """Else the test above would pass with plain means."""
    from jaxopt_large.data import load_data

    batch = next(Batches(load_data(small(data, settings=_SMALL).data, 0), 16, 0))
    counts = batch["mask"].reshape(4, -1).sum(axis=1)
    assert counts.max() > 1.1 * counts.min()
    del whole


@pytest.mark.parametrize("how", ["sharded", "deferred"])
def test_a_plan_knows_of_the_mask(how, data):
    more = ["train.accumulate=2", f"train.accumulation={how}"]
    config = small(data, *more, settings=_SMALL)
    mesh = make_mesh((4,), ("data",), devices=jax.devices()[:4])
    assert {name: x.shape for name, x in abstract_batch(config, mesh).items()} == {
        "tokens": (2, 8, 65),
        "mask": (2, 8, 64),
    }
    without = small(data.replace("pack: true", "pack: false"), *more, settings=_SMALL)
    assert plan_of(config).device_bytes == pytest.approx(plan_of(without).device_bytes, rel=0.01)
