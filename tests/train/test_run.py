"""A run from the outside: its folder, its summary, how it resumes, what it refuses."""

import functools
import json
import os
import signal

import jax
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large import cli
from jaxopt_large.checkpoint._manifest import read_manifest
from jaxopt_large.data import Batches
from jaxopt_large.train import RunError, loop, train

from .runs import CONFIGS, small

_SMALL = [
    "train.steps=12",
    "train.batch=32",
    "train.eval_every=6",
    "train.checkpoint_every=4",
    "train.keep=3",
    "model.hidden=[16]",
    "optimizer.groups.*.learning_rate={schedule: warmup_cosine, peak: 0.1, warmup: 3}",
]


_config = functools.partial(small, settings=_SMALL)


def _arrays(run, step=12):
    """Path -> (shape, dtype, checksum): equal exactly when the arrays are, bit for bit."""
    manifest = read_manifest(run / "checkpoints" / f"step_{step:08d}")
    return manifest["arrays"], manifest["metadata"]["position"]["data"]


def _params(run, devices_config):
    """The final parameters on the host."""
    manifest = read_manifest(run / "checkpoints" / "step_00000012")
    like = {
        name: jax.ShapeDtypeStruct(tuple(a["shape"]), a["dtype"]) for name, a in manifest["arrays"].items()
    }
    tree = jl.restore(run / "checkpoints" / "step_00000012", like)
    return {n: np.asarray(x) for n, x in tree.items() if n.startswith("params/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    from rich.console import Console

    runs = tmp_path_factory.mktemp("runs")
    with open(os.devnull, "w") as nowhere:
        summary = train(_config(), runs=runs, console=Console(file=nowhere))
    return runs / "digits", summary


def _interrupt_at(monkeypatch, step):
    """Ctrl-C while the given step is reported."""
    report = loop._Run._report

    def interrupted(self, progress, at, metrics):
        report(self, progress, at, metrics)
        if at == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop._Run, "_report", interrupted)


def test_the_folder_and_the_summary(whole):
    run, summary = whole
    names = {f.name for f in run.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "summary.json", "curves.png", "checkpoints"}
    assert json.loads((run / "summary.json").read_text()) == summary
    wanted = {
        "final_validation_loss", "best_validation_loss", "steps", "wall_seconds", "tokens_per_second",
        "state_bytes_unsharded", "state_bytes_per_device", "devices", "skipped_steps", "versions",
    }  # fmt: skip
    assert wanted <= set(summary)
    assert (summary["steps"], summary["devices"], summary["skipped_steps"]) == (12, 8, 0)
    # a model this small has no leaf worth dividing
    assert summary["state_bytes_per_device"] == summary["state_bytes_unsharded"]
    assert [f.name for f in sorted((run / "checkpoints").iterdir())] == [
        "step_00000004", "step_00000008", "step_00000012",
    ]  # fmt: skip
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_metrics(whole):
    run, summary = whole
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 13))
    for name in ("loss", "gradient_norm", "learning_rate", "tokens_per_second", "skipped_steps"):
        assert all(name in line for line in steps)
    assert steps[0]["learning_rate"] == 0.0
    assert steps[3]["learning_rate"] == pytest.approx(0.1)
    evaluations = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert evaluations[-1]["validation_loss"] == summary["final_validation_loss"]
    assert evaluations[-1]["validation_loss"] < steps[0]["loss"]


def test_the_resolved_configuration_reads_back(whole):
    assert jl.load(whole[0] / "config.yaml") == _config()


@pytest.mark.parametrize("at", [2, 5])
def test_ctrl_c_saves_and_resume_goes_on_bit_for_bit(whole, tmp_path, monkeypatch, quiet_console, at):
    with monkeypatch.context() as patch:
        _interrupt_at(patch, at)
        summary = train(_config(), runs=tmp_path, console=quiet_console)
    assert (summary["interrupted"], summary["steps"]) == (True, at)
    assert (tmp_path / "digits" / "checkpoints" / f"step_{at:08d}").is_dir()
    summary = train(_config(), runs=tmp_path, resume=True, console=quiet_console)
    assert _arrays(tmp_path / "digits") == _arrays(whole[0])
    assert (summary["interrupted"], summary["steps"]) == (False, 12)
    assert summary["best_validation_loss"] == whole[1]["best_validation_loss"]
    a, b = (
        [json.loads(t) for t in (r / "metrics.jsonl").read_text().splitlines()]
        for r in (tmp_path / "digits", whole[0])
    )
    assert [line.get("loss") for line in a] == [line.get("loss") for line in b]


def test_resuming_is_not_a_cold_start(whole, tmp_path, monkeypatch, quiet_console):
    """With fresh moments, or with the data from its beginning, the end is another."""
    for forget in ("state", "data"):
        runs = tmp_path / forget
        with monkeypatch.context() as patch:
            _interrupt_at(patch, 5)
            train(_config(), runs=runs, console=quiet_console)
        with monkeypatch.context() as patch:
            if forget == "state":
                loaded = loop.make_execution

                def forgetful(*args, make=loaded):
                    execution = make(*args)
                    restore = execution.loaded
                    execution.loaded = lambda tree, p, s: (restore(tree, p, s)[0], s)
                    return execution

                patch.setattr(loop, "make_execution", forgetful)
            else:
                patch.setattr(Batches, "go_to", lambda self, position: None)
            train(_config(), runs=runs, resume=True, console=quiet_console)
        ours, theirs = _arrays(runs / "digits")[0], _arrays(whole[0])[0]
        assert ours.keys() == theirs.keys()
        assert any(ours[n]["checksum"] != theirs[n]["checksum"] for n in ours if n.startswith("params/"))


@pytest.mark.parametrize(
    "overrides",
    [
        ["placement.parallel=pmap"],
        ["placement.parallel=pmap", "placement.zero=null"],
        ["placement.zero=null"],
        pytest.param(["train.accumulate=2"], marks=pytest.mark.full),
        pytest.param(["placement.mesh={data: 4}"], marks=pytest.mark.full),
        ["placement.parallel=pmap", "train.accumulate=4", "placement.mesh={data: 2}"],
    ],
    ids=lambda o: " ".join(o),
)
def test_every_way_to_run_gives_the_same_parameters(whole, tmp_path, quiet_console, overrides):
    train(_config(*overrides), runs=tmp_path, console=quiet_console)
    ours, theirs = _params(tmp_path / "digits", overrides), _params(whole[0], [])
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["placement.mesh={data: 4}"]),
        pytest.param([], ["placement.parallel=pmap"], marks=pytest.mark.full),
        (["placement.parallel=pmap"], ["placement.mesh={data: 2}"]),
        pytest.param(
            ["placement.parallel=pmap"],
            ["placement.parallel=pmap", "placement.mesh={data: 4}"],
            marks=pytest.mark.full,
        ),
    ],
    ids=str,
)
def test_resuming_on_other_devices_works_within_tolerance(
    whole, tmp_path, monkeypatch, quiet_console, before, after
):
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 5)
        train(_config(*before), runs=tmp_path, console=quiet_console)
    train(_config(*after), runs=tmp_path, resume=True, console=quiet_console)
    ours, theirs = _params(tmp_path / "digits", after), _params(whole[0], [])
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_pmap_resumes_bit_for_bit(tmp_path, monkeypatch, quiet_console):
    config = _config("placement.parallel=pmap")
    train(config, runs=tmp_path / "whole", console=quiet_console)
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 5)
        train(config, runs=tmp_path / "parts", console=quiet_console)
    train(config, runs=tmp_path / "parts", resume=True, console=quiet_console)
    assert _arrays(tmp_path / "parts" / "digits") == _arrays(tmp_path / "whole" / "digits")


def test_skipped_steps_are_counted(tmp_path, quiet_console, monkeypatch):
    take = Batches.__next__

    def broken(self):
        batch, self.seen = take(self), getattr(self, "seen", 0) + 1
        if self.seen in (3, 7):
            batch["features"] = np.full_like(batch["features"], np.nan)
        return batch

    monkeypatch.setattr(Batches, "__next__", broken)
    summary = train(_config(), runs=tmp_path, console=quiet_console)
    assert summary["skipped_steps"] == 2
    assert np.isfinite(summary["final_validation_loss"])
    lines = [json.loads(line) for line in (tmp_path / "digits" / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines if "loss" in line].count(True) == 2


def _command(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *map(str, words)])
    out = capsys.readouterr()
    return caught.value.code, out.out, out.err


def _digits(tmp_path, *more):
    sets = [word for item in _SMALL for word in ("--set", item)]
    return [CONFIGS / "digits_mlp.yaml", "--runs", tmp_path, *sets, *more]


def test_the_command_line_shows_a_run_in_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = _command(capsys, *_digits(tmp_path))
    assert (code, err) == (0, "")
    for words in (
        "run digits finished",
        "per device",
        "nats/example",
        "accuracy",
        "--resume",
        "training loss",
    ):
        assert words in out
    boxed = [line for line in out.splitlines() if line and line[0] in "╭│╰"]
    assert max(map(len, boxed)) <= 80
    code, _, err = _command(capsys, *_digits(tmp_path))
    assert code == 2
    assert "a run is there already" in err
    assert "--resume" in err
    assert _command(capsys, *_digits(tmp_path, "--overwrite"))[0] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--set", "train.batch=36"], "train.batch: 36 is not divisible by 8"),
        (["--set", "data={kind: text, path: /no/such/folder}", "--set", "model={kind: transformer, layers: 1, width: 8, heads: 1}"],
         "data: folder does not exist, got '/no/such/folder'"),
        (["--set", "optimizer.groups.*.learning_rate=-0.1"], "must be greater than or equal to 0"),
        (["--set", "optimizer.groups.*.momentum=1.0"], "momentum is out of range, got 1.0"),
        (["--set", "placement.zero=model"], "the mesh has no axis 'model'; its axes are data"),
        (["--set", "placement.mesh.data=16"], "needs 16 devices, got 8 (cpu)"),
        (["--set", "trian.steps=1"], "unknown key (got 'trian'); did you mean 'train'?"),
        (["--set", "model={kind: bert, vocabulary: 8, layers: 1, width: 8, mlp_width: 8, positions: 8}"], "for planning only"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line_and_leaves_nothing(tmp_path, capsys, words, expected):
    code, _, err = _command(capsys, *_digits(tmp_path / "runs", *words))
    assert code == 2
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_empty_data(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "short.txt").write_text("too short")
    words = [
        "--set",
        f"data={{kind: text, path: {empty}}}",
        "--set",
        "model={kind: transformer, layers: 1, width: 8, heads: 1}",
    ]
    code, _, err = _command(capsys, *_digits(tmp_path / "runs", *words))
    assert code == 2
    assert "too little" in err
    assert "more than data.context = 128 bytes" in err


def test_a_checkpoint_of_another_model(tmp_path, capsys, quiet_console):
    train(_config(), runs=tmp_path, console=quiet_console)
    code, _, err = _command(capsys, *_digits(tmp_path, "--resume", "--set", "model.hidden=[8]"))
    assert code == 2
    assert "belongs to another model" in err
    assert "params/dense_0/kernel" in err


def test_a_damaged_checkpoint_is_passed_over_only_when_asked(
    whole, tmp_path, capsys, monkeypatch, quiet_console
):
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 10)
        train(_config(), runs=tmp_path, console=quiet_console)
    newest = tmp_path / "digits" / "checkpoints" / "step_00000010"
    file = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-7])
    code, _, err = _command(capsys, *_digits(tmp_path, "--resume"))
    assert code == 2
    assert str(file) in err
    assert "--fall-back" in err
    assert _command(capsys, *_digits(tmp_path, "--resume", "--fall-back"))[0] == 0
    assert _arrays(tmp_path / "digits") == _arrays(whole[0])


def test_nothing_to_resume_from(tmp_path, capsys):
    code, out, _ = _command(capsys, *_digits(tmp_path, "--resume"))
    assert code == 0
    assert "Nothing to resume from: starting at step 0." in out


def test_changed_data_is_refused(tmp_path, quiet_console):
    text = tmp_path / "text"
    text.mkdir()
    (text / "a.txt").write_bytes(bytes(range(256)) * 40)
    overrides = [
        f"data={{kind: text, path: {text}, context: 8, validation_windows: 32}}",
        "model={kind: transformer, layers: 1, width: 8, heads: 1}",
    ]
    train(_config(*overrides), runs=tmp_path, console=quiet_console)
    (text / "a.txt").write_bytes(bytes(range(256)) * 41)
    with pytest.raises(RunError, match="the data has changed since the checkpoint"):
        train(_config(*overrides), runs=tmp_path, resume=True, console=quiet_console)
