"""Going on with other settings: what is said of them, and what the run goes on with."""

import json
import shutil

import jax
import numpy as np
import pytest
import yaml

import jaxopt_large as jl
from jaxopt_large.checkpoint._manifest import read_manifest, seal
from jaxopt_large.config import changes, settings
from jaxopt_large.train import RunError, loop

from .runs import command, lines, run, small

_CLIPPED = "optimizer.clip=1e9"  # never, so that its results are those without
_GROUPS = "optimizer.groups={{'*bias': {{rule: {}, learning_rate: 0.05}}, '*': {{rule: adamw, learning_rate: 0.05}}}}"
_TRAPEZOID = "{schedule: warmup_stable_decay, peak: 0.05, warmup: 1, decay: 0}"
_RATE = "optimizer.groups.*.learning_rate="


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(loop, "draw_curves", lambda *_: None)  # a fifth of the time


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Runs of 3 steps, each trained once: name of the change -> its folder."""
    folders = {}

    def start(*overrides):
        if overrides not in folders:
            folders[overrides] = tmp_path_factory.mktemp("started")
            run(folders[overrides], *overrides, "train.steps=3")
        return folders[overrides]

    return start


@pytest.fixture
def copied(started, tmp_path):
    def copy(*overrides):
        return shutil.copytree(started(*overrides), tmp_path / "runs")

    return copy


def _final(runs, step=6):
    path = runs / "digits" / "checkpoints" / f"step_{step:08d}"
    arrays = read_manifest(path)["arrays"]
    like = {n: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for n, a in arrays.items()}
    return {n: np.asarray(x) for n, x in jl.restore(path, like).items() if n.startswith("params/")}


@pytest.mark.parametrize(
    ("before", "after", "told", "report"),
    [
        pytest.param(
            [_RATE + "{schedule: inverse_sqrt, peak: 0.05, warmup: 1}"],
            [],
            ["optimizer.groups.*.learning_rate: {schedule: inverse_sqrt, peak: 0.05, warmup: 1} -> 0.05"],
            "kept 10, new 0, dropped 1",
            id="a schedule becomes a constant",
        ),
        pytest.param(
            [],
            [_CLIPPED],
            ["optimizer.clip: not set -> 1000000000.0"],
            "kept 10, new 0, dropped 0",
            id="a clip is added",
        ),
        pytest.param(
            [_GROUPS.format("adamw")],
            [_GROUPS.format("sgd")],
            ["optimizer.groups.*bias.rule: adamw -> sgd", "optimizer.groups.*bias.b1: 0.9 -> not set"],
            "kept 11, new 0, dropped 5",
            id="the rule of a group",
        ),
        pytest.param(
            [],
            ["optimizer.storage={params: null, fields: {trace: bfloat16}}", "placement.parallel=pmap"],
            [
                "optimizer.storage: not set -> {fields: {trace: bfloat16}, params: null}",
                "placement.parallel: jit -> pmap",
            ],
            "kept 10, new 2, dropped 0",
            id="storage and pmap",
        ),
    ],
)
def test_a_structure_that_has_changed(copied, before, after, told, report, capfd):
    runs = copied(*before)
    old = (runs / "digits" / "config.yaml").read_text()
    with pytest.raises(RunError, match="belongs to another model or rule") as caught:
        run(runs, *after, resume=True)
    text = str(caught.value)
    assert text.startswith("train: the checkpoint of step 3 ")
    for line in told:
        assert f"\n  {line}\n" in text
    assert f"\n  {report}\n" in text
    assert "Add --changed to go on with what is common" in text
    assert (runs / "digits" / "config.yaml").read_text() == old  # what it ran with
    if after == [_CLIPPED]:
        return  # goes on below
    shown = run(runs, *after, resume=True, changed=True)
    assert "Changed since step 3:" in shown
    for line in told:
        assert f"\n  {line}\n" in shown
    assert f"From the checkpoint of step 3: {report}" in shown
    assert [line["step"] for line in lines(runs / "digits") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert jl.load(runs / "digits" / "config.yaml") == small(*after)
    assert (runs / "digits" / "config.1.yaml").read_text() == f"# of this run until step 3\n{old}"
    assert jl.load(runs / "digits" / "config.1.yaml") == small(*before, "train.steps=3")


def test_what_is_common_goes_on(copied, tmp_path):
    """Moments and steps, of a schedule that is new too: as if the run had been so from the start."""
    runs = copied()
    run(runs, _CLIPPED, _RATE + _TRAPEZOID, resume=True, changed=True)
    run(tmp_path / "whole")
    ours, theirs = _final(runs), _final(tmp_path / "whole")
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, rtol=1e-5, atol=1e-7, err_msg=name)
    rates = [line["learning_rate"] for line in lines(runs / "digits") if "loss" in line]
    assert rates == pytest.approx([0.05] * 6)


def test_settings_that_change_no_array_are_told_too(copied, capfd):
    runs = copied()
    code, shown, _ = command(capfd, runs, "--resume", "--set", _RATE + "0.02", "--set", "train.steps=5")
    assert code == 0
    assert "Changed since step 3:\n" in shown
    assert "\n  optimizer.groups.*.learning_rate: 0.05 -> 0.02\n" in shown
    assert "\n  train.steps: 3 -> 5\n" in shown
    assert "kept" not in shown
    code, shown, _ = command(capfd, runs, "--resume", "--set", _RATE + "0.02", "--set", "train.steps=5")
    assert code == 0
    assert "Changed" not in shown
    assert sorted(f.name for f in (runs / "digits").glob("*.yaml")) == ["config.1.yaml", "config.yaml"]
    command(capfd, runs, "--resume", "--set", _RATE + "0.01", "--set", "train.steps=5")
    kept = [yaml.safe_load((runs / "digits" / f"config{n}.yaml").read_text()) for n in (".1", ".2", "")]
    assert [c["optimizer"]["groups"]["*"]["learning_rate"] for c in kept] == [0.05, 0.02, 0.01]


def test_the_checkpoint_knows_what_it_was_written_with(copied, monkeypatch):
    """A resumed run that was killed before its first checkpoint has left its configuration in the folder."""
    runs = copied()
    (runs / "digits" / "config.yaml").write_text(jl.config.to_yaml(small(_CLIPPED)))
    with pytest.raises(RunError, match=r"optimizer.clip: not set -> 1000000000.0"):
        run(runs, _CLIPPED, resume=True)


def test_a_checkpoint_that_does_not_say_is_that_of_the_folder(copied):
    runs = copied()
    path = runs / "digits" / "checkpoints" / "step_00000003"
    manifest = read_manifest(path)
    assert manifest["metadata"].pop("config") == json.loads(json.dumps(settings(small("train.steps=3"))))
    seal(path / "manifest.json", manifest)
    with pytest.raises(RunError, match=r"optimizer.clip: not set -> 1000000000.0"):
        run(runs, _CLIPPED, resume=True)
    (runs / "digits" / "config.yaml").unlink()
    with pytest.raises(RunError, match="belongs to another model or rule"):
        run(runs, _CLIPPED, resume=True)


def test_no_setting_has_changed_but_the_arrays(copied):
    runs = copied()
    path = runs / "digits" / "checkpoints" / "step_00000003"
    manifest = read_manifest(path)
    manifest["arrays"]["state/old"] = manifest["arrays"]["params/dense_0/bias"]
    seal(path / "manifest.json", manifest)
    with pytest.raises(RunError, match="though no setting has changed: another version of jaxopt_large"):
        run(runs, "train.steps=3", resume=True)


def test_changed_needs_something_to_resume_and_something_common(copied, capfd, tmp_path):
    code, _, err = command(capfd, tmp_path / "none", "--changed")
    assert (code, err) == (2, "train: changed goes with resume. Add --resume.\n")
    assert not (tmp_path / "none").exists()
    runs = copied()
    with pytest.raises(RunError, match="no parameter is common to the checkpoint of step 3"):
        run(runs, "model.hidden=[]", resume=True, changed=True)


def test_what_differs_between_two_configurations():
    old = settings(small())
    assert changes(old, json.loads(json.dumps(old))) == []
    new = settings(small(_RATE + _TRAPEZOID, "seed=3", "model.hidden=[8, 9]", "placement.zero=null"))
    assert changes(old, new) == [
        "seed: 0 -> 3",
        "model.hidden: [8] -> [8, 9]",
        "optimizer.groups.*.learning_rate: 0.05 -> "
        "{schedule: warmup_stable_decay, peak: 0.05, warmup: 1, decay: 0, end: 0.0, shape: linear}",
        "placement.zero: data -> not set",
    ]
    assert changes({"a": True, "b": 1, "c": {}}, {"a": 1, "b": 1.0, "d": None}) == [
        "a: true -> 1",
        "c: {} -> not set",
    ]
