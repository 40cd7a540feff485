"""Runs with guards, loss scales, numbers that are set and rates in proportion, as configurations have them."""

import jax
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large.checkpoint._manifest import read_manifest
from jaxopt_large.config import ConfigError
from jaxopt_large.data import Batches
from jaxopt_large.train import RunError, train

from .runs import lines, run, small

_LONG = [
    "train.steps=60",
    "train.batch=64",
    "train.eval_every=60",
    "train.checkpoint_every=30",
    "model.hidden=[32]",
]


def _arrays(path, step):
    return read_manifest(path / "checkpoints" / f"step_{step:08d}")["arrays"]


def _broken(monkeypatch, numbers, factor):
    """Some of the batches have features that many times as large."""
    take, seen = Batches.__next__, []

    def next_of(self):
        batch = take(self)
        seen.append(None)
        if len(seen) in numbers:
            batch["features"] = (batch["features"] * factor).astype(np.float32)
        return batch

    monkeypatch.setattr(Batches, "__next__", next_of)


@pytest.mark.parametrize("how", ["placement.parallel=jit", "placement.parallel=pmap"])
def test_float16_ends_where_float32_does(how, tmp_path, quiet_console):
    guard = "optimizer.guards=[{guard: dynamic_loss_scale, initial: 1048576.0, interval: 50}]"
    longer = [*_LONG, how, "train.steps=200", "train.eval_every=200"]
    wide = train(small(*longer), runs=tmp_path / "a", console=quiet_console)
    half = small(*longer, guard, "model.dtype=float16")
    summary = train(half, runs=tmp_path / "b", console=quiet_console)
    assert summary["final_validation_loss"] == pytest.approx(wide["final_validation_loss"], abs=0.02)
    ends = [lines(tmp_path / name / "digits")[-1]["validation_accuracy"] for name in "ab"]
    assert abs(ends[0] - ends[1]) < 0.025
    assert 0 < summary["skipped_steps"] < 15  # the first scale is too large: it is found
    losses = [line["loss"] for line in lines(tmp_path / "b" / "digits") if "loss" in line]
    assert losses[0] == pytest.approx(lines(tmp_path / "a" / "digits")[0]["loss"], rel=0.01)  # not scaled


def test_nothing_of_a_scale_is_lost_on_resume(tmp_path, quiet_console):
    guard = "optimizer.guards=[{guard: dynamic_loss_scale, initial: 16777216.0, interval: 3}]"
    settings = [
        guard,
        "model.dtype=float16",
        "train.steps=12",
        "train.eval_every=12",
        "train.checkpoint_every=6",
    ]
    train(small(*settings), runs=tmp_path / "a", console=quiet_console)
    train(small(*settings, "train.steps=6"), runs=tmp_path / "b", console=quiet_console)
    train(small(*settings), runs=tmp_path / "b", resume=True, console=quiet_console)
    assert _arrays(tmp_path / "a" / "digits", 12) == _arrays(tmp_path / "b" / "digits", 12)


@pytest.mark.parametrize("how", ["train.accumulate=1", "train.accumulate=2", "placement.parallel=pmap"])
def test_a_spike_is_survived(how, tmp_path, quiet_console, monkeypatch):
    guard = "optimizer.guards=[{guard: skip_spikes, sigmas: 8.0, warmup: 10}]"
    clean = train(small(*_LONG, how), runs=tmp_path / "clean", console=quiet_console)
    _broken(monkeypatch, {20, 33, 50}, 1e3)
    hurt = train(small(*_LONG, how), runs=tmp_path / "hurt", console=quiet_console)
    monkeypatch.undo()
    _broken(monkeypatch, {20, 33, 50}, 1e3)
    guarded = train(small(*_LONG, how, guard), runs=tmp_path / "guarded", console=quiet_console)
    assert guarded["skipped_steps"] == 3
    assert guarded["final_validation_loss"] < clean["final_validation_loss"] + 0.1
    assert not hurt["final_validation_loss"] < 1.5 * guarded["final_validation_loss"]


def test_a_guard_that_gives_up_ends_the_run(tmp_path, quiet_console, monkeypatch):
    guard = "optimizer.guards=[{guard: skip_spikes, warmup: 10, give_up: 4}]"
    _broken(monkeypatch, set(range(31, 61)), 1e4)
    expected = (
        r"skip_spikes has given up, got too many steps in a row to leave out by step 34\. Step 30 is safe"
    )
    with pytest.raises(RunError, match=expected):
        train(small(*_LONG, guard), runs=tmp_path, console=quiet_console)
    (saved,) = (tmp_path / "digits" / "checkpoints").iterdir()
    assert saved.name == "step_00000030"
    often = [guard, "train.checkpoint_every=1"]
    monkeypatch.undo()
    _broken(monkeypatch, set(range(31, 61)), 1e4)
    with pytest.raises(RunError, match=r"by step 34\. Step 33 is safe"):
        train(small(*_LONG, *often), runs=tmp_path / "often", console=quiet_console)
    names = sorted(f.name for f in (tmp_path / "often" / "digits" / "checkpoints").iterdir())
    assert names == ["step_00000032", "step_00000033"]


@pytest.mark.parametrize(
    "how",
    ["placement.parallel=jit", "placement.parallel=pmap", "placement.zero=null", "train.checkpoint_every=1"],
)
def test_a_run_goes_back_when_a_guard_gives_up(how, tmp_path, monkeypatch):
    """Parameters drift away with a rate that is far too high for ten steps, and come back."""
    guard = "optimizer.guards=[{guard: skip_spikes, warmup: 10, give_up: 3}]"
    _broken(monkeypatch, set(range(31, 36)), 1e4)
    shown = run(tmp_path, *_LONG, how, guard, "train.rollback=5")
    assert "skip_spikes has given up: parameters and state are those of a snapshot again" in shown
    told = lines(tmp_path / "digits")
    assert told[-1]["validation_loss"] < 1.0
    losses = [line["loss"] for line in told if "loss" in line]
    assert len(losses) == 60
    assert losses[-1] < 1.0


def test_a_run_goes_back_a_few_times_only(tmp_path, quiet_console, monkeypatch):
    guard = "optimizer.guards=[{guard: skip_spikes, warmup: 10, give_up: 3}]"
    _broken(monkeypatch, set(range(31, 61)), 1e4)
    with pytest.raises(RunError, match=r"skip_spikes has given up"):
        train(small(*_LONG, guard, "train.rollback=5"), runs=tmp_path, console=quiet_console)
    with pytest.raises(ConfigError, match=r"no guard gives up; add \{guard: skip_spikes\}"):
        small("train.rollback=5")


def test_groups_keep_their_own_numbers_on_resume(tmp_path, quiet_console):
    groups = (
        "optimizer.groups={'*bias': {rule: sgd, learning_rate: 0.01}, '*': {rule: sgd, learning_rate: 0.05}}"
    )
    for name, more in (("turned", ["optimizer.adjustable=true"]), ("plain", [])):
        train(small(groups, *more, "train.steps=3"), runs=tmp_path / name, console=quiet_console)
        train(small(groups, *more), runs=tmp_path / name, resume=True, console=quiet_console)
    ours, theirs = (_arrays(tmp_path / name / "digits", 6) for name in ("turned", "plain"))
    for name, entry in theirs.items():
        if name.startswith("params/"):
            assert ours[name]["checksum"] == entry["checksum"], name


def test_guards_of_every_kind_are_settings(tmp_path):
    guards = "[{guard: clip_per_leaf, max_norm: 1.0}, {guard: clip_by_block_rms, threshold: 1.0}, "
    guards += "{guard: adaptive_grad_clip, clipping: 0.1, axes: {'dense_0/kernel': [0]}}, "
    guards += "{guard: clip_by_ema_norm, ratio: 2.0, per_leaf: true}, {guard: clip_updates, max_rms: 0.1}, "
    guards += "{guard: skip_spikes}]"
    shown = run(tmp_path, f"optimizer.guards={guards}")
    assert "run digits finished" in shown


def test_numbers_are_the_configurations_on_resume(tmp_path, quiet_console):
    """A run that goes on with another rate, and one that had that rate from there on, end alike."""
    settings = ["optimizer.adjustable=true", "train.eval_every=6"]
    rate = "optimizer.groups.*.learning_rate=0.01"
    train(small(*settings, "train.steps=3"), runs=tmp_path, console=quiet_console)
    train(small(*settings, rate), runs=tmp_path, resume=True, console=quiet_console)
    found = [line["learning_rate"] for line in lines(tmp_path / "digits") if "loss" in line]
    assert found == pytest.approx([0.05] * 3 + [0.01] * 3)
    names = _arrays(tmp_path / "digits", 6)
    assert any(name.endswith("hyperparams/learning_rate") for name in names)
    plain = ["train.eval_every=6"]
    train(small(*plain, "train.steps=3"), runs=tmp_path / "plain", console=quiet_console)
    train(small(*plain, rate), runs=tmp_path / "plain", resume=True, console=quiet_console)
    theirs = _arrays(tmp_path / "plain" / "digits", 6)
    for name, entry in theirs.items():
        if name.startswith("params/"):
            assert names[name]["checksum"] == entry["checksum"]


def test_schedules_of_adjustable_rules_go_on(tmp_path, quiet_console):
    settings = ["optimizer.adjustable=true", "train.eval_every=6"]
    settings += ["optimizer.groups.*.learning_rate={schedule: warmup_cosine, peak: 0.1, warmup: 2}"]
    train(small(*settings), runs=tmp_path / "a", console=quiet_console)
    train(small(*settings, "train.steps=3"), runs=tmp_path / "b", console=quiet_console)
    config = small(*settings)
    train(config, runs=tmp_path / "c", console=quiet_console)
    assert _arrays(tmp_path / "a" / "digits", 6) == _arrays(tmp_path / "c" / "digits", 6)


def test_rates_in_proportion(tmp_path):
    shown = run(tmp_path, "optimizer.multipliers={lr: {'*bias': 0.0}}")
    assert "run digits finished" in shown


def test_rates_by_width_in_a_configuration():
    """As those of the rule that mup makes of the narrow model's shapes."""
    from jaxopt_large.models import make_model

    more = ["model={kind: transformer, layers: 2, width: 64, heads: 2}", "data={kind: stdlib, context: 16}"]
    config = small("optimizer.mup={base: {width: 16}, layers: 'layers/*'}", *more)
    params = make_model(config.model).abstract()
    narrow = make_model(config.model.model_copy(update={"width": 16})).abstract()
    params, narrow = (jax.tree.map(lambda x: jax.numpy.ones(x.shape), tree) for tree in (params, narrow))
    plain = small(*more)
    made, expected = jl.build(config), jl.mup(jl.build(plain), narrow, layers="layers/*")
    grads = jax.tree.map(jax.numpy.ones_like, params)
    found = made.update(grads, made.init(params), params)[0]
    theirs = expected.update(grads, expected.init(params), params)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, theirs)
    assert float(found["layers"]["mlp"]["up"][0, 0, 0] / found["layers"]["mlp"]["norm"][0, 0]) == 0.25
    assert float(found["embed"][0, 0] / found["norm"][0]) == 1.0
    with pytest.raises(ConfigError, match=r"optimizer.mup.base: the model has no depth"):
        small("optimizer.mup={base: {depth: 2}}", *more)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimizer.guards=[{guard: skip_spike}]", "skip_spike"),
        ("optimizer.guards=[{guard: clip_per_leaf, max_norm: 0.0}]", "max_norm"),
        ("optimizer.guards=[{guard: clip_per_leaf}]", "max_norm"),
        ("optimizer.multipliers={layers: '*'}", "layers and layer_decay go together"),
        ("optimizer.multipliers={lr: {'*': -1.0}}", "optimizer.multipliers.lr"),
        ("optimizer.adjustable=2", "optimizer.adjustable"),
    ],
)
def test_settings_that_are_refused(setting, expected):
    with pytest.raises(ConfigError, match=expected):
        small(setting)


def test_globs_without_a_leaf_end_a_run(tmp_path, quiet_console):
    with pytest.raises(RunError, match="'biases' matches no leaf"):
        train(small("optimizer.multipliers={lr: {biases: 0.1}}"), runs=tmp_path, console=quiet_console)
