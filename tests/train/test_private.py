"""Private runs: they resume with the same noise, keep within their budget, and say what is spent."""

import os
import signal

import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large.checkpoint import read_metadata
from jaxopt_large.checkpoint._manifest import read_manifest
from jaxopt_large.config import ConfigError
from jaxopt_large.train import RunError, loop, train

from .runs import lines, small

_SMALL = [
    "train={steps: 6, batch: 64, eval_every: 3, checkpoint_every: 3}",
    "model.hidden=[8]",
    "placement.mesh={data: 2}",
    "optimizer.groups.*.learning_rate=0.2",
    "privacy={clip: 1.0, noise_multiplier: 1.5, delta: 1.0e-5, method: rdp, seed: 7}",
]


def _config(*overrides):
    return small(*overrides, file="digits_dp", settings=_SMALL)


def _arrays(run, step=6):
    return read_manifest(run / "checkpoints" / f"step_{step:08d}")["arrays"]


def _spent(steps, noise=1.5):
    given = {"sampling_rate": 64 / 1437, "noise_multiplier": noise, "delta": 1e-5, "method": "rdp"}
    return jl.privacy_spent(steps=steps, **given)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    import io

    from rich.console import Console

    runs, shown = tmp_path_factory.mktemp("runs"), io.StringIO()
    summary = train(_config(), runs=runs, console=Console(file=shown, width=200))
    return runs / "digits-dp", summary, shown.getvalue()


def test_what_is_spent_is_shown_and_written_down(whole):
    run, summary, shown = whole
    assert summary["epsilon"] == pytest.approx(_spent(6))
    assert f"epsilon {_spent(6):.4g} at delta 1e-05; noise 1.5 x clip 1" in shown
    told = [line["epsilon"] for line in lines(run) if "epsilon" in line]
    assert told == pytest.approx([_spent(3), _spent(6)])


def _interrupted(config, runs, console, monkeypatch, at=3):
    report = loop._Run._report

    def interrupt(self, progress, step, metrics):
        report(self, progress, step, metrics)
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_report", interrupt)
        train(config, runs=runs, console=console)


def test_a_run_that_resumes_ends_with_the_same_bits(whole, tmp_path, quiet_console, monkeypatch):
    _interrupted(_config(), tmp_path, quiet_console, monkeypatch)
    summary = train(_config(), runs=tmp_path, resume=True, console=quiet_console)
    assert _arrays(tmp_path / "digits-dp") == _arrays(whole[0])
    assert summary["epsilon"] == whole[1]["epsilon"]


def test_the_secret_of_a_run_is_its_own_and_in_its_checkpoints(tmp_path, quiet_console):
    own = "privacy.seed=null"
    for name in ("a", "b"):
        train(_config(own, "train.steps=3"), runs=tmp_path / name, console=quiet_console)
    folder = "digits-dp/checkpoints/step_0000000"
    found = [read_metadata(tmp_path / name / f"{folder}3")["private"]["secret"] for name in "ab"]
    assert len({*found, 7}) == 3
    assert _arrays(tmp_path / "a" / "digits-dp", 3) != _arrays(tmp_path / "b" / "digits-dp", 3)
    train(_config(own), runs=tmp_path / "a", resume=True, console=quiet_console)
    later = read_metadata(tmp_path / "a" / f"{folder}6")
    assert later["private"]["secret"] == found[0]
    assert later["position"]["data"] == {"draws": 6}


def test_steps_that_were_made_otherwise_are_not_counted_as_these(tmp_path, quiet_console):
    train(_config("train.steps=3"), runs=tmp_path, console=quiet_console)
    how = {"runs": tmp_path, "resume": True, "console": quiet_console}
    for setting, told in (
        ("privacy.noise_multiplier=20.0", "noise_multiplier 1.5 -> 20"),
        ("privacy.clip=2.0", "clip 1 -> 2"),
        ("train.batch=32", "batch 64 -> 32"),
    ):
        with pytest.raises(RunError, match=f"what steps spend has changed since the checkpoint, got {told}"):
            train(_config(setting), **how)
    with pytest.raises(RunError, match="the steps before were made with privacy"):
        train(_config("privacy=null"), **how)
    plain = tmp_path / "plain"
    train(_config("privacy=null", "train.steps=3"), runs=plain, console=quiet_console)
    with pytest.raises(RunError, match="the steps before were made without privacy"):
        train(_config(), runs=plain, resume=True, console=quiet_console)


def test_noise_of_a_budget_stays_what_it_was(tmp_path, quiet_console):
    """With more steps the run ends where the budget ends."""
    asked = "privacy={clip: 1.0, epsilon: 2.0, delta: 1.0e-5, method: rdp, seed: 7}"
    train(_config(asked, "train.steps=4"), runs=tmp_path, console=quiet_console)
    with pytest.raises(
        RunError, match=r"the privacy budget is spent, got epsilon .* after 4 steps; the budget is 2"
    ):
        train(_config(asked, "train.steps=12"), runs=tmp_path, resume=True, console=quiet_console)


def test_other_sums_have_other_noise():
    """As a run has them that is taken back and goes on with other settings; more devices make no other sums."""
    import jax

    from jaxopt_large.data import load_data
    from jaxopt_large.train.private import Private

    def noise(*overrides):
        config = _config(*overrides)
        made = Private(config, load_data(config.data, 0)).gradient(
            lambda params, batch: jax.numpy.sum(params["w"])
        )
        batch = {"there": np.zeros((1, 4), bool), "draw": np.zeros((1, 4), np.int32), "x": np.zeros((1, 4))}
        return np.asarray(made({"w": jax.numpy.zeros(3)}, batch)[1]["w"])

    same = noise()
    np.testing.assert_array_equal(noise("placement.mesh={data: 4}", "train.eval_every=2"), same)
    for other in ("optimizer.groups.*.learning_rate=0.1", "seed=1", "model.hidden=[9]", "train.steps=9"):
        assert not np.array_equal(noise(other), same)


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.groups={'*': {rule: polyak_sgd}}",
        "optimizer.groups={'*': {rule: sophia, learning_rate: 0.1}}",
        "optimizer.guards=[{guard: skip_spikes, of: loss}]",
    ],
)
def test_rules_that_ask_for_the_loss_are_refused(setting, tmp_path, quiet_console):
    with pytest.raises(RunError, match=r"(value|obj_fn).* needed, got None"):
        train(_config(setting), runs=tmp_path, console=quiet_console)


@pytest.mark.parametrize(
    "how", ["placement.parallel=pmap", "placement={parallel: pmap, mesh: {data: 2}}", "privacy.microbatch=16"]
)
def test_every_way_to_run_makes_the_same_steps(how, whole, tmp_path, quiet_console):
    train(_config(how), runs=tmp_path, console=quiet_console)

    def params(run):
        arrays = _arrays(run)
        import jax

        like = {n: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for n, a in arrays.items()}
        found = jl.restore(run / "checkpoints" / "step_00000006", like)
        return {n: np.asarray(x) for n, x in found.items() if n.startswith("params/")}

    ours, theirs = params(tmp_path / "digits-dp"), params(whole[0])
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, rtol=1e-4, atol=1e-6)


def test_a_run_ends_before_its_budget_is_passed(tmp_path, quiet_console):
    most = (_spent(4) + _spent(5)) / 2
    config = _config(f"train.max_epsilon={most}")
    summary = train(config, runs=tmp_path, console=quiet_console)
    assert (summary["steps"], summary["interrupted"]) == (4, False)
    assert summary["epsilon"] <= most < _spent(5)
    with pytest.raises(
        RunError, match=r"the privacy budget is spent, got epsilon .* after 4 steps; the budget is"
    ):
        train(config, runs=tmp_path, resume=True, console=quiet_console)
    more = _config(f"train.max_epsilon={_spent(6) + 1e-6}")
    assert train(more, runs=tmp_path, resume=True, console=quiet_console)["steps"] == 6


def test_a_budget_gives_the_noise(tmp_path, quiet_console):
    asked = "privacy={clip: 1.0, epsilon: 2.0, delta: 1.0e-5, method: rdp, seed: 7}"
    summary = train(_config(asked), runs=tmp_path, console=quiet_console)
    assert 1.99 < summary["epsilon"] <= 2.0


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("privacy={clip: 1.0, delta: 1.0e-5}", "give one of noise_multiplier and epsilon"),
        ("privacy={clip: 1.0, delta: 1.0e-5, noise_multiplier: 1.0, epsilon: 1.0}", "give one of noise_mult"),
        ("privacy.clip=0.0", "privacy.clip"),
        ("privacy.delta=1.0", "privacy.delta"),
        ("train.accumulate=2", "a private step is of one draw, got 2"),
        ("train.max_epsilon=0.0", "train.max_epsilon"),
    ],
)
def test_settings_that_are_refused(setting, expected):
    with pytest.raises(ConfigError, match=expected):
        _config(setting)
    with pytest.raises(ConfigError, match="there is no privacy to spend"):
        small("train.max_epsilon=1.0")


def test_a_budget_of_nothing(tmp_path, quiet_console):
    with pytest.raises(RunError, match="the privacy budget is spent, got epsilon 0 after 0 steps"):
        train(_config("train.max_epsilon=1e-9"), runs=tmp_path, console=quiet_console)
    with pytest.raises(RunError, match="a batch of 2000 is expected of 1437 examples"):
        train(_config("train.batch=2000"), runs=tmp_path / "b", console=quiet_console)
