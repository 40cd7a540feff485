"""Configurations that describe no training: what `train` says of them."""

from pathlib import Path

import jax
import pytest

import jaxopt_large as jl
from jaxopt_large import cli
from jaxopt_large.models import make_model
from jaxopt_large.train import RunError, devices
from jaxopt_large.train.refusals import refusals

_CONFIGS = Path(__file__).parents[2] / "configs"
_NO_DATA = {
    "bert_base",
    "gpt2_124m",
    "gpt2_124m_muon_int8",
    "gpt3_175b",
    "gpt3_175b_v5e",
    "llama3_8b",
    "moe_8x7b",
    "t5_3b",
}
_NO_MODEL = {"bert_base", "moe_8x7b", "t5_3b"}


def _train(capsys, tmp_path, *words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", *map(str, words), "--runs", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()
    return caught.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(f.stem for f in _CONFIGS.glob("*.yaml")))
def test_every_configuration_trains_or_says_that_it_is_for_planning(name, tmp_path, capsys):
    config = jl.load(_CONFIGS / f"{name}.yaml")
    if name not in _NO_DATA:
        devices.check_trains(config, make_model(config.model))
        return
    code, err = _train(capsys, tmp_path, _CONFIGS / f"{name}.yaml")
    assert (code, len(err.splitlines())) == (2, 1)
    assert f"{config.name!r} is for planning only as it stands: " in err
    assert "data.path is not set" in err
    assert ("has no forward pass" in err) == (name in _NO_MODEL)
    assert ("set data.path=FOLDER" in err) == (name not in _NO_MODEL)
    assert ("its mesh has 1,024 devices" in err) == (name == "gpt3_175b")
    assert "jaxopt-large train configs/stdlib_gpt.yaml" in err  # what to run instead


def test_with_data_only_the_model_is_in_the_way(tmp_path, capsys):
    path = f"data.path={tmp_path}"
    _, err = _train(capsys, tmp_path, _CONFIGS / "bert_base.yaml", "--set", path)
    assert "model.kind 'bert' has no forward pass. To see a run" in err
    config = jl.load(_CONFIGS / "gpt2_124m.yaml", [path])
    devices.check_trains(config, make_model(config.model))


def test_a_mesh_larger_than_the_machine(tmp_path, capsys, monkeypatch):
    simulated = []
    monkeypatch.setattr(devices.jax.config, "update", lambda *words: simulated.append(words))
    words = ["--set", f"data.path={tmp_path}", "--set", "distributed=off"]
    code, err = _train(capsys, tmp_path, _CONFIGS / "gpt3_175b.yaml", *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "needs 1,024 devices, got 8 (cpu)" in err
    assert not simulated  # nor does it try to simulate any number


def test_a_model_larger_than_the_machine(tmp_path, capsys):
    code, err = _train(capsys, tmp_path, _CONFIGS / "digits_mlp.yaml", "--set", "model.hidden=[2000000000]")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "train: the parameters take 558.79 GiB, and this machine's memory is " in err


@pytest.mark.parametrize(
    "error", [MemoryError(), jax.errors.JaxRuntimeError("INTERNAL: Out of memory\nof 3")]
)
def test_out_of_memory_is_one_line(error):
    with (
        pytest.raises(RunError, match=r"^train: out of memory \(.*\)\. Lower train.batch, raise .*\.$"),
        refusals(),
    ):
        raise error


def test_errors_that_are_no_users_are_left_alone():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: a bug"), refusals():
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_a_cluster_that_is_not_there(tmp_path, capsys, monkeypatch):
    def initialize():
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(devices.jax.distributed, "initialize", initialize)
    code, err = _train(capsys, tmp_path, _CONFIGS / "gpt3_175b.yaml", "--set", f"data.path={tmp_path}")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "distributed: auto found no other processes (coordinator_address should be defined.)" in err


@pytest.mark.parametrize("path", ["~no-such-user/text", "a" * 5000])
def test_a_folder_of_text_that_no_system_has(path, tmp_path, capsys):
    words = ["--set", f"data={{kind: text, path: {path}}}"]
    words += ["--set", "model={kind: transformer, layers: 1, width: 8, heads: 1}"]
    code, err = _train(capsys, tmp_path, _CONFIGS / "digits_mlp.yaml", *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert "data: folder does not exist, got " in err
