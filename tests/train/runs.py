"""Small runs for the tests of what goes wrong with one."""

import io
import json
from pathlib import Path

import jax
import pytest
from rich.console import Console

import jaxopt_large as jl
from jaxopt_large import cli
from jaxopt_large.train import train

jax.devices()  # all 8, before a run on 2 asks for its own
CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = [
    "train.steps=6",
    "train.batch=32",
    "train.eval_every=6",
    "train.checkpoint_every=3",
    "model.hidden=[8]",
    "placement.mesh={data: 2}",
    "optimizer.clip=null",
    "optimizer.groups.*.learning_rate=0.05",
]


def small(*overrides, file="digits_mlp", settings=SMALL):
    return jl.load(CONFIGS / f"{file}.yaml", [*settings, *overrides])


def run(runs, *overrides, **how):
    """Runs it; returns what it showed."""
    shown = io.StringIO()
    train(small(*overrides), runs=runs, console=Console(file=shown, width=200), **how)
    return shown.getvalue()


def command(capfd, runs, *words):
    """The command line on the same run: exit code, standard output, standard error."""
    sets = [word for item in SMALL for word in ("--set", item)]
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(CONFIGS / "digits_mlp.yaml"), "--runs", str(runs), *sets, *map(str, words)])
    shown = capfd.readouterr()
    return caught.value.code, shown.out, shown.err


def lines(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run / name).read_text().splitlines()]
