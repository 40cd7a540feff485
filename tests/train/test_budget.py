"""The choice that fits a budget, beside all that could be chosen."""

import itertools
import json

import jax
import jax.numpy as jnp
import pytest

import jaxopt_large as jl
from jaxopt_large import cli
from jaxopt_large.config import changed
from jaxopt_large.storage.formats import FORMATS
from jaxopt_large.train import RunError, choices, plan_of
from jaxopt_large.train import budget as budgets

from .runs import CONFIGS

_SMALL = ["model.hidden=[1024, 1024]", "placement.mesh={data: 8}", "placement.zero=data", "train.batch=4096"]
_SGD = "{rule: sgd, learning_rate: 0.1, momentum: 0.9}"
_TWO = f'optimizer.groups={{"dense_1*": {_SGD}, "*": {_SGD}}}'
_TRANSFORMER = ["model={kind: transformer, layers: 2, width: 64, heads: 2}", "train.batch=16"]


def _config(*overrides):
    return jl.load(CONFIGS / "digits_mlp.yaml", [*_SMALL, *overrides])


def _everything(config):
    """Each combination of changes, as a configuration, its plan, and what it costs."""
    bases = {}
    axes = [choices.formats, choices.micro_batches, choices.remats]
    places = [None, *choices.divided(config), *choices.offloaded(config)]
    for place, *rest in itertools.product(places, *([None, *axis(config)] for axis in axes)):
        changes = [c for c in (place, *rest) if c is not None]
        try:
            new = changed(config, {k: v for c in changes for k, v in c.values.items()})
            plan = plan_of(new, chip=budgets.NOMINAL)
        except (ValueError, RunError):
            continue
        # the work, without what formats and the host's memory take and save
        work = [c for c in changes if not {*c.values} & {"optimizer.storage.fields", "placement.offload"}]
        key = tuple(c.line for c in work)
        if key not in bases:
            values = {k: v for c in work for k, v in c.values.items()}
            bases[key] = plan_of(changed(config, values), chip=budgets.NOMINAL)
        base = bases[key]
        error = max((c.error for c in changes), default=0.0)
        seconds = sum(base.times.values()) + choices.transfers_of(plan)
        yield plan.device_bytes, seconds * (1 + error**2), changes


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        _config(),
        _config("placement.zero=null"),
        _config(_TWO, "placement.zero=null"),
        pytest.param(
            jl.load(CONFIGS / "stdlib_gpt.yaml", [*_TRANSFORMER, "placement.zero=null"]),
            marks=pytest.mark.full,  # minutes: half a second for each of its plans
        ),
    ],
    ids=["mlp", "mlp, replicated", "mlp of two groups", "transformer"],
)
def test_the_choice_is_the_best_of_all(config):
    """Four budgets for each of four configurations, from just too little to what next to nothing takes."""
    found = list(_everything(config))
    now = plan_of(config, chip=budgets.NOMINAL).device_bytes
    sizes = sorted(size for size, _, _ in found if size < now)
    for share in (0.99, 0.5, 0.2, 0.0):
        budget = int(sizes[int(share * (len(sizes) - 1))] / (1 - budgets.MARGIN)) + 1
        best = min(cost for size, cost, _ in found if size <= budget * (1 - budgets.MARGIN))
        choice = budgets.within(config, budget, chip=budgets.NOMINAL)
        assert choice.config is not None
        assert choice.plan.device_bytes <= budget
        mine = min(
            c for _, c, changes in found if {x.line for x in changes} == {x.line for x in choice.changes}
        )
        assert best <= mine <= best * (1 + budgets.NEARLY), (share, choice.changes)


def test_groups_are_told_apart():
    """Between what 8 and what 4 bits of all moments take, 4 bits of some are enough, and lose less."""
    config = _config(_TWO)
    eight, four, *mixed = choices.formats(config)
    assert eight.globs == four.globs == 0
    sizes = {
        c.line: choices.state_plan(choices.with_changes(config, [c])).part("state")
        for c in (eight, four, *mixed)
    }
    one = next(
        c for c in mixed if c.values["optimizer.storage.fields"]["trace"] == {"dense_1*": "int8", "*": "int4"}
    )
    assert sizes[four.line] < sizes[one.line] < sizes[eight.line]
    assert 0 < one.error < four.error
    assert str(one.line) == 'optimizer.storage.fields: {trace: {"dense_1*": int8, "*": int4}}'
    assert 'placement.offload: "*dense_1*"' in [c.line for c in choices.offloaded(config)]


@pytest.mark.parametrize(
    "globs",
    [
        ("dense_0/kernel", "dense_0/bias", "dense_1/*", "dense_2/*"),
        ("dense_0/kernel", "dense_0/bias", "dense_1/*", "*"),
    ],
)
def test_groups_too_many_to_be_told_apart(globs):
    """All that is offered can be built, and shares are of all parameters."""
    config = _config("optimizer.groups={" + ", ".join(f'"{g}": {_SGD}' for g in globs) + "}")
    assert sum(choices.groups_of(config).values()) == pytest.approx(1.0)
    for change in choices.formats(config):
        assert choices.state_plan(choices.with_changes(config, [change])) is not None, change.line


def test_no_chip_that_was_not_asked_for_is_told():
    assert budgets.within(_config(), 2**40).plan.chip is None
    assert budgets.within(_config(), 7 * 2**20).plan.chip is None
    assert budgets.within(_config(), 2**40, chip="v5e").plan.chip.name == "v5e"


def test_what_fits_stays_as_it_is():
    choice = budgets.within(_config(), 2**40)
    assert choice.changes == ()
    assert "It fits 1024.00 GiB as it is" in str(choice)


def test_nothing_fits():
    config = _config()
    parameters = plan_of(config).part("parameters")
    choice = budgets.within(config, int(parameters * 1.05))
    assert choice.config is None
    assert "Nothing fits" in str(choice)
    assert json.loads(json.dumps(choice.to_json()))["fits"] is False


def test_moments_in_8_bits_are_found_for_the_large_model():
    """GPT-3 on 256 v5e, with moments in float32, does not fit; the configuration with 8 bits is what is found."""
    config = jl.load(CONFIGS / "gpt3_175b_v5e.yaml", ["optimizer.storage=null"])
    assert not plan_of(config, chip="v5e").fits
    choice = budgets.within(config, int(15.75 * 2**30), chip="v5e")
    assert [c.values for c in choice.changes] == [{"optimizer.storage.fields": {"mu": "int8", "nu": "int8"}}]
    assert choice.plan.fits


@pytest.mark.parametrize("name", [n for n in choices.ERRORS if n != "float32"])
def test_errors_of_formats_are_what_encoding_makes(name):
    x = jax.random.normal(jax.random.key(0), (256, 4096))
    made = []
    for value in (x, jnp.square(x)):
        form = FORMATS[name](signed=bool(value.min() < 0))
        back = form.decode(form.encode(value))
        made.append(float(jnp.sqrt(jnp.mean(jnp.square(back - value)) / jnp.mean(jnp.square(value)))))
    assert max(made) == pytest.approx(choices.ERRORS[name], rel=0.1)


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--budget", "1TiB"], 0, "It fits 1024.00 GiB as it is"),
        (["--budget", "7MiB"], 0, "change"),
        (["--budget", "7MiB", "--json"], 0, '"fits": true'),
        (["--budget", "2MiB"], 1, "Nothing fits 2.00 MiB: the smallest takes "),
        (["--budget", "1KiB"], 2, "plan: budget is below the parameters, got 1.00 KiB"),
        (["--budget", "lots"], 2, "plan: budget is not understood, got 'lots'. Write it like 16GiB."),
        (["--budget", "-3GiB"], 2, "plan: budget is not understood"),
        (["--compare", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--compile"], 2, "plan: --compile needs to know for what. Give --chip, such as v5e."),
        (["--compile", "--chip", "H100"], 2, "plan: --compile is for TPUs, got 'H100'"),
        (["--compile", "--chip", "v5e", "--mesh", "data=4"], 2, "libtpu"),
        (["--model", "nowhere:model"], 2, "plan: model is not found, got 'nowhere:model'"),
        (["--model", "nowhere"], 2, "plan: model is not understood, got 'nowhere'"),
    ],
)
def test_the_command(words, code, expected, capsys):
    sets = [x for s in _SMALL for x in ("--set", s)]
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", str(CONFIGS / "digits_mlp.yaml"), *sets, *words])
    shown = capsys.readouterr()
    assert expected in (shown.err if code == 2 else shown.out), shown
    assert caught.value.code == code


def test_configurations_side_by_side(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", str(CONFIGS / "digits_mlp.yaml"), "--compare", str(CONFIGS / "stdlib_gpt.yaml")])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    head = shown.splitlines()[0].split()
    assert head == ["one", "device", "digits", "demo"]
    assert "temporaries" in shown


def test_alternatives_save_what_they_say():
    config = _config()
    plan = plan_of(config, chip="v5e")
    found = choices.alternatives(config, plan, chip="v5e")
    assert len(found) == 3
    for one in found:
        path, _, value = one.line.partition(": ")
        other = plan_of(_config(f"{path}={value}"), chip="v5e")
        assert plan.device_bytes - other.device_bytes == one.saves
    shown = str(plan.beside(found))
    assert "instead" in shown
    assert all(one.line in shown for one in found)


def test_pictures(tmp_path, capsys):
    png, html = tmp_path / "plan.png", tmp_path / "plan.html"
    sets = [x for s in _SMALL for x in ("--set", s)]
    words = ["--chip", "v5e", "--png", str(png), "--html", str(html)]
    with pytest.raises(SystemExit):
        cli.main(["plan", str(CONFIGS / "digits_mlp.yaml"), *sets, *words])
    assert png.read_bytes().startswith(b"\x89PNG")
    page = html.read_text()
    assert "activations" in page
    assert "<script" not in page
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["plan", str(CONFIGS / "digits_mlp.yaml"), *sets, "--png", str(tmp_path / "no" / "plan.png")]
        )
    assert caught.value.code == 1
    assert "could not be written" in capsys.readouterr().err
