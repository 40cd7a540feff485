"""What `jaxopt-large schedule` shows, and what it says of configurations that have no such thing."""

import builtins
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import jaxopt_large as jl
from jaxopt_large import cli
from jaxopt_large.train import rates, show_rates
from jaxopt_large.train.chart import bars

_CONFIGS = Path(__file__).parents[2] / "configs"
_MUON = _CONFIGS / "stdlib_gpt_muon.yaml"


def _command(capsys, *words):
    with pytest.raises(SystemExit) as caught:
        cli.main(["schedule", *map(str, words)])
    shown = capsys.readouterr()
    return caught.value.code, shown.out, shown.err


def _shown(config, **how):
    text = io.TextIOWrapper(io.BytesIO(), encoding=how.pop("encoding", "utf-8"))
    show_rates(config, console=Console(file=text, width=how.pop("width", 80)), **how)
    text.seek(0)
    return text.read()


def test_the_rates_of_a_run():
    found = rates.rates(jl.load(_MUON))
    assert list(found.values) == ["*: muon", "*: adamw"]
    t = np.arange(500)
    expected = np.interp(t, [0, 50, 500], [0, 2e-2, 0])
    np.testing.assert_array_equal(found.counts, t)
    np.testing.assert_allclose(found.values["*: muon"], expected, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(found.values["*: adamw"], expected * 0.3, rtol=1e-4, atol=1e-8)


def test_a_run_of_very_many_steps(monkeypatch):
    monkeypatch.setattr(rates, "_MOST", 1000)
    found = rates.rates(jl.load(_MUON, ["train.steps=2147483647"]))
    assert len(found.counts) == 1000
    assert (found.counts[0], found.counts[-1]) == (0, 2147483646)
    assert (np.diff(found.counts) > 0).all()


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_terminals_width(width):
    text = _shown(jl.load(_MUON), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("█") > 4
    assert "learning rate of" in text


def test_the_table():
    lines = [line.split() for line in _shown(jl.load(_MUON)).splitlines()[-3:]]
    assert lines[0] == ["rule", "first", "peak", "at", "step", "last"]
    assert lines[1:] == [
        ["*:", "muon", "0", "0.02", "51", "4.44e-05"],
        ["*:", "adamw", "0", "0.006", "51", "1.33e-05"],
    ]


def test_a_terminal_without_unicode_has_the_table_only():
    text = _shown(jl.load(_MUON), encoding="ascii")
    assert len(text.splitlines()) == 3
    assert text.isascii()


def test_numbers_and_frozen_parameters():
    config = jl.load(_MUON, ["optimizer.groups.*={rule: sgd, learning_rate: 0.5}"])
    assert _shown(config).splitlines()[-1].split() == ["*:", "sgd", "0.5", "0.5", "1", "0.5"]
    assert "No rule here has a learning rate." in _shown(
        jl.load(_MUON, ["optimizer.groups.*={rule: freeze}"])
    )


def test_bars_begin_at_0_unless_they_are_of_logarithms():
    linear = bars([0.0, 1.0, 2.0, 4.0], 4, 4)
    assert [line[11:] for line in linear[:8]] == [
        "   █",
        "   █",
        "   █",
        "   █",
        "  ██",
        "  ██",
        " ███",
        " ███",
    ]
    assert linear[7].startswith("        0 ┤")
    assert linear[0].startswith("        4 ┤")
    log = bars([1.0, 10.0, 100.0], 3, 3, log=True)
    assert log[7].endswith("▁██")
    assert log[7].startswith("    1.000 ┤")
    assert bars([0.0] * 9, 3, 9)[7].endswith("┤   ")


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    picture = tmp_path / "rates.png"
    code, out, err = _command(capsys, _MUON, "--set", "train.steps=40", "--png", picture)
    assert (code, err) == (0, "")
    assert "*: muon" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_goes_wrong_is_one_line(tmp_path, capsys):
    code, _, err = _command(capsys, tmp_path / "none.yaml")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "there is no file" in err
    code, _, err = _command(capsys, _MUON, "--set", "train.steps=0")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "train.steps: must be greater" in err
    code, _, err = _command(capsys, _MUON, "--png", tmp_path / "none" / "x.png")
    assert (code, len(err.splitlines())) == (1, 1)
    assert err.startswith("schedule: ")
    assert "x.png' could not be written, got ENOENT" in err


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    importing = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    code, out, _ = _command(capsys, _MUON, "--png", tmp_path / "x.png")
    assert code == 1
    assert "No picture of the curves: matplotlib comes with jaxopt_large[viz]." in out
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["bert_base", "gpt3_175b"])
def test_configurations_for_planning_have_rates_too(name):
    assert rates.rates(jl.load(_CONFIGS / f"{name}.yaml")).values
