"""The plan of a configuration: what its run holds, and what the command says of it."""

import io
import re

import jax
import numpy as np
import pytest
from rich.console import Console

import jaxopt_large as jl
from jaxopt_large import cli
from jaxopt_large.config import mesh_of
from jaxopt_large.gradient_norm import watched
from jaxopt_large.models import make_model
from jaxopt_large.train import plan_of
from jaxopt_large.train.execution import JitExecution, make_execution
from jaxopt_large.train.plan_table import show
from jaxopt_large.train.planning import abstract_batch

from ..test_plan_memory import held
from .runs import CONFIGS


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_configuration_has_a_plan(file):
    found = plan_of(jl.load(file), chip="v5p")
    assert found.fits
    assert found.part("state") > 0


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("stdlib_gpt_tensor", ["placement.fsdp=data"]),
        ("stdlib_gpt_pmap", ["placement.zero=data"]),
        ("stdlib_gpt_offload", []),
        (
            "digits_mlp",
            ["placement.mesh={data: 8}", "placement.zero=data", "model.hidden=[333, 701]", "train.batch=64"],
        ),
    ],
)
def test_a_run_holds_what_its_plan_says(file, overrides):
    config = jl.load(CONFIGS / f"{file}.yaml", overrides)
    mesh = mesh_of(config.placement)
    run = make_execution(config, make_model(config.model), jl.build(config, mesh=mesh, around=watched), mesh)
    params, state = run.init(jax.random.key(0))
    found, norm = plan_of(config), np.dtype(np.float32).itemsize  # of the gradient, which runs watch
    assert (found.part("parameters"), found.part("state") + norm) == (held(params), held(state))


@pytest.mark.parametrize(
    ("file", "overrides"),
    [
        ("stdlib_gpt_tensor", []),
        ("stdlib_gpt_tensor", ["placement.fsdp=data"]),
        ("stdlib_gpt", []),
        ("stdlib_gpt", ["placement.fsdp=data"]),
        ("stdlib_gpt", ["train.accumulate=4"]),
        ("stdlib_gpt", ["train.accumulate=4", "train.accumulation=deferred"]),
        ("stdlib_gpt_muon", []),
    ],
)
def test_a_step_takes_what_its_plan_says(file, overrides):
    """All of memory, beside the CPU compiler's account; and what ZeRO-1 and Muon send, to the byte."""
    config = jl.load(CONFIGS / f"{file}.yaml", overrides)
    mesh = mesh_of(config.placement)
    run = JitExecution(config, make_model(config.model), jl.build(config, mesh=mesh, around=watched), mesh)
    state = jl.abstract_state(run.rule, run.params)
    jitted = run.jitted(jax.tree.map(lambda x: x.sharding, state))
    step = jitted.lower(run.params, state, abstract_batch(config, mesh)).compile()
    memory, sent = step.memory_analysis(), jl.plan.collectives(step)
    total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    total -= memory.alias_size_in_bytes
    found = plan_of(config)
    assert found.device_bytes == pytest.approx(total, rel=0.05)
    if len(mesh.shape) == 1:
        small = 2**13  # norms, counters and decisions: of a few numbers each
        for kind in ("all-gather", "all-reduce"):
            assert abs(found.collectives.bytes(kind) - sent.bytes(kind)) < small


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--chip", "v5p"], 0, "1,024 devices, v5p of 95.74 GiB: "),
        (["--chip", "v5e", "--mesh", "data=8,model=8"], 1, "64 devices, v5e of 15.75 GiB: does not fit, by "),
        (["--json"], 0, '"devices": 1024'),
        (["--chip", "v9"], 2, "plan: chip is unknown, got 'v9'"),
        (
            ["--mesh", "data:8"],
            2,
            "plan: mesh is not understood, got 'data:8'. Write it like data=128,model=8.",
        ),
        (["--mesh", "rows=8"], 2, "the mesh has no axis 'data'"),
        (["--mesh", "data=128,model=8,rows=2"], 2, "plan: mesh has an axis that nothing uses, got rows=2"),
        (["--mesh", "data=8,model=7"], 2, "does not divide evenly, got 50304 by model=7"),
    ],
)
def test_the_command(words, code, expected, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", str(CONFIGS / "gpt3_175b.yaml"), *words])
    shown = capsys.readouterr()
    assert expected in (shown.err if code == 2 else shown.out)
    assert caught.value.code == code


def test_the_readme_shows_what_the_command_says(capsys):
    readme = (CONFIGS.parent / "README.md").read_text()
    command = "jaxopt-large plan configs/gpt3_175b_v5e.yaml --chip v5e"
    shown = readme.split(f"$ {command}\n")[1].split("```")[0]
    with pytest.raises(SystemExit):
        cli.main(["plan", str(CONFIGS / "gpt3_175b_v5e.yaml"), "--chip", "v5e"])
    assert capsys.readouterr().out.strip() == shown.strip()


@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_has_colors_and_bars(width):
    """The words are those of the text; a wide terminal has room for bars."""
    plan = plan_of(jl.load(CONFIGS / "gpt2_124m.yaml"), chip="v5e")
    shown = io.StringIO()
    show(plan, Console(file=shown, width=width, force_terminal=True, color_system="standard"))
    text = shown.getvalue()
    assert ("█" in text) == (width == 120)
    assert "\x1b[1;32m8 devices, v5e of 15.75 GiB" in text
    assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= width for line in text.splitlines())
    words = set(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    assert words >= {w for w in str(plan).split() if not set(w) <= {"-"}}

    plain = io.StringIO()
    show(plan, Console(file=plain, width=width))
    assert plain.getvalue() == f"{plan}\n"


def test_no_plan_is_no_picture():
    with pytest.raises(ValueError, match="there is no plan to draw"):
        jl.plan.picture.page({})
