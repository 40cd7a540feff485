"""Configurations: every problem at once, with its line; overrides; what comes out."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large.config import ConfigError, build, load, to_yaml

_GOOD = """\
name: test
data: {kind: stdlib, context: 16}
model:
  kind: transformer
  layers: 2
  width: 16
  heads: 2
optimizer:
  clip: 1.0
  groups:
    "*":
      rule: adamw
      learning_rate: 3e-4
      b1: 0.9
placement:
  mesh: {data: 4}
  zero: data
train:
  steps: 10
  batch: 8
"""


def _load(tmp_path, text=_GOOD, overrides=()):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return load(file, overrides)


def _line(text):
    """The line of _GOOD on which `text` stands."""
    return 1 + next(i for i, line in enumerate(_GOOD.splitlines()) if text in line)


def test_scientific_notation_is_a_number(tmp_path):
    config = _load(tmp_path)
    assert config.optimizer.groups["*"].learning_rate == 3e-4
    assert _load(tmp_path, overrides=["optimizer.groups.*.learning_rate=1E-3"]).optimizer.groups[
        "*"
    ].learning_rate == pytest.approx(1e-3)


def test_defaults_are_filled_in_and_what_is_written_reads_back(tmp_path):
    config = _load(tmp_path)
    assert (config.seed, config.train.accumulate, config.optimizer.groups["*"].b2) == (0, 1, 0.999)
    assert _load(tmp_path, to_yaml(config)) == config


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  heads: 2", "  heads: 2\n  headz: 2", "{line+1}: model.headz: unknown key (got 'headz'); did you mean 'heads'?"),
        ("  steps: 10", "  stepps: 10\n  steps: 10", "{line}: train.stepps: unknown key (got 'stepps'); did you mean 'steps'?"),
        ("name: test", "name: test\ntrian: {}", "{line+1}: trian: unknown key (got 'trian'); did you mean 'train'?"),
        ("      b1: 0.9", "      beta1: 0.9", "{line}: optimizer.groups.*.beta1: unknown key (got 'beta1'); did you mean 'b1'?"),
        ("  layers: 2", "  layers: two", "{line}: model.layers: must be an integer (got 'two')"),
        ("  layers: 2", "  layers: 0", "{line}: model.layers: must be greater than or equal to 1 (got 0)"),
        ("  steps: 10", '  steps: "10"', "{line}: train.steps: must be an integer (got '10')"),
        ("  batch: 8", "  batch: 6", "{line}: train.batch: 6 is not divisible by 4 (4 devices along 'data' x 1 accumulated)"),
        ("learning_rate: 3e-4", "learning_rate: -1", "{line}: optimizer.groups.*.learning_rate: must be greater than or equal to 0 (got -1)"),
        ("      b1: 0.9", "      b1: 1", "{line}: optimizer.groups.*.b1: b1 is out of range, got 1.0; b1 must be a number in [0, 1)."),
        ("rule: adamw", "rule: adamww", "{line}: optimizer.groups.*.rule: must be one of gradient_descent, sgd, adagrad, rmsprop, adadelta, adam, adamw, "),
        ("  kind: transformer", "  kind: transfomer", "{line}: model.kind: must be one of transformer, mlp, bert, t5, moe (got 'transfomer'); did you mean 'transformer'?"),
        ("  zero: data", "  zero: modle", "placement: zero: the mesh has no axis 'modle'; its axes are data"),
        ("  kind: transformer", "  kind: transformer\n  kind: transformer", "{line+1}: model.kind: the key is there twice"),
        ("  clip: 1.0", "  clip: -2.0", "{line}: optimizer.clip: must be greater than 0 (got -2.0)"),
        ("  heads: 2", "  heads: 3", "model: width 16 is not divisible by twice the 3 heads"),
        ("name: test", "name: ../test", "{line}: name: String should match pattern"),
        ("name: test\n", "", "name: missing"),
        ("  steps: 10", "  steps: [", "not YAML"),
    ],
)  # fmt: skip
def test_each_problem_has_its_line(tmp_path, old, new, expected):
    line = _line(old.splitlines()[0])
    expected = expected.replace("{line+1}", str(line + 1)).replace("{line}", str(line))
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, _GOOD.replace(old, new))
    text = str(caught.value)
    assert expected in text, text
    assert re.match(rf"^{re.escape(str(tmp_path / 'run.yaml'))}:\d+: ", text)


def test_all_problems_come_at_once(tmp_path):
    broken = (
        _GOOD.replace("layers: 2", "layers: two")
        .replace("steps: 10", "steps: 0")
        .replace("heads: 2", "head: 2")
    )
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, broken)
    assert len(str(caught.value).splitlines()) == 4  # heads is missing as well


def test_rules_report_all_their_settings(tmp_path):
    broken = _GOOD.replace("      b1: 0.9", "      b1: 1.5\n      b2: 2.0\n      eps: -1.0")
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, broken)
    assert [f"{_line('b1:') + i}: optimizer" in str(caught.value) for i in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=0", "--set train.steps=0: train.steps: must be greater than or equal to 1 (got 0)"),
        (
            "train.stepps=5",
            "--set train.stepps=5: train.stepps: unknown key (got 'stepps'); did you mean 'steps'?",
        ),
        ("train.steps", "--set train.steps: not of the form a.b=value"),
        ("name.x=1", "--set name.x=1: name is not a group of settings"),
        ("train.steps=[", "--set train.steps=[: not YAML"),
    ],
)
def test_overrides_are_checked_alike(tmp_path, override, expected):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, overrides=[override])
    assert expected in str(caught.value)


def test_overrides_win(tmp_path):
    config = _load(tmp_path, overrides=["train.steps=7", "placement.mesh={data: 2}", "seed=3"])
    assert (config.train.steps, config.placement.mesh, config.seed) == (7, {"data": 2}, 3)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["", "- a\n", "5\n"])
def test_a_file_that_is_no_mapping(tmp_path, text):
    with pytest.raises(ConfigError, match="not a mapping"):
        _load(tmp_path, text)


def test_the_rule_that_is_built(tmp_path):
    config = _load(
        tmp_path, overrides=["optimizer.groups.*.mask='*kernel'", "optimizer.groups.*.weight_decay=0.5"]
    )
    rule, params = build(config), {"dense": {"bias": jnp.ones(4), "kernel": jnp.ones((4, 4))}}
    state = rule.init(params)
    assert state.layout.shares == 4
    assert state.inner.inner[1][0].mu["dense"]["kernel"].is_fully_replicated  # 64 bytes: too small to divide
    updates, _ = rule.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(np.asarray(updates["dense"]["kernel"]), -3e-4 * 0.5, rtol=1e-5)
    assert not np.any(np.asarray(updates["dense"]["bias"]))


def test_groups_become_a_partition(tmp_path):
    text = _GOOD.replace('    "*":', '    "*bias": {rule: freeze}\n    "*":')
    rule, params = build(_load(tmp_path, text)), {"bias": jnp.ones(4), "w": jnp.ones((4, 4))}
    updates, _ = rule.update(params, rule.init(params), params)
    assert not np.any(np.asarray(updates["bias"]))
    assert np.all(np.asarray(updates["w"]))


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("{schedule: warmup_cosine, peak: 1.0, warmup: 2}", {0: 0.0, 2: 1.0, 10: 0.0}),
        (
            "{schedule: warmup_stable_decay, peak: 1.0, warmup: 2, decay: 4}",
            {0: 0.0, 2: 1.0, 6: 1.0, 8: 0.5, 10: 0.0},
        ),
        ("{schedule: inverse_sqrt, peak: 1.0, warmup: 4}", {0: 0.0, 4: 1.0, 16: 0.5}),
        (
            "{schedule: warmup_stable_decay, peak: 1.0, warmup: 2, decay: 4, shape: sqrt}",
            {1: 0.5, 6: 1.0, 7: 0.5, 10: 0.0},
        ),
        ("{schedule: constant, peak: 1.0}", {0: 1.0, 10: 1.0}),
        ("{schedule: constant, peak: 1.0, warmup: 4}", {0: 0.0, 2: 0.5, 4: 1.0, 10: 1.0}),
        ("{schedule: linear, peak: 1.0, end: 0.5}", {0: 1.0, 5: 0.75, 10: 0.5}),
        ("{schedule: linear, peak: 1.0, warmup: 20}", {10: 0.5, 20: 0.0}),  # longer than the run
        ("{schedule: exponential, peak: 1.0, end: 0.01, warmup: 2}", {1: 0.5, 2: 1.0, 6: 0.1, 10: 0.01}),
        ("{schedule: power, peak: 1.0, exponent: 1.0, warmup: 4}", {2: 0.5, 4: 1.0, 8: 0.5}),
        (
            "{schedule: one_cycle, peak: 1.0, init_divisor: 2, final_divisor: 5, shape: linear}",
            {0: 0.5, 2: 1.0, 9: 0.1},
        ),
        ("{schedule: cyclic, low: 0.5, high: 1.0, half_period: 3}", {0: 0.5, 3: 1.0, 6: 0.5}),
        (
            "{schedule: cyclic, low: 0.0, high: 1.0, half_period: 1, shape: exp_range, decay: 0.5}",
            {1: 0.5, 3: 0.125},
        ),
        (
            "{schedule: warmup_then, warmup: 2, then: {schedule: linear, peak: 1.0}}",
            {0: 0.0, 1: 0.5, 2: 1.0, 6: 0.5, 10: 0.0},
        ),
    ],
)
def test_schedules_end_with_the_run(tmp_path, schedule, values):
    from jaxopt_large.config._build import learning_rate

    rate = learning_rate(_load(tmp_path, _GOOD.replace("3e-4", schedule)))
    for step, expected in values.items():
        assert float(rate(jnp.int32(step))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (
            "{schedule: cyclic, low: 0.0, high: 1.0, half_period: 0}",
            ".learning_rate.half_period: must be gre",
        ),
        ("{schedule: one_cycle, peak: 1.0, shape: cubic}", ".learning_rate.shape: must be 'cosine' or"),
        ("{schedule: cyclic, low: 0.0, high: 1.0, half_period: 1, shape: exp_range}", "*: decay is missing"),
        (
            "{schedule: warmup_stable_decay, peak: 1.0, warmup: 2, decay: 4, shape: exponential}",
            "*: end_value is out of range, got 0.0; the exponential shape takes a number > 0",
        ),
        (
            "{schedule: warmup_then, warmup: 2, then: {schedule: linear, peak: -1.0}}",
            ".learning_rate.then.peak: must be greater than or equal to 0",
        ),
        (
            "{schedule: warmup_then, warmup: 2, then: {schedule: linaer, peak: 1.0}}",
            ".learning_rate.then.schedule: must be one of constant, linear,",
        ),
    ],
)
def test_schedules_that_are_none(tmp_path, schedule, says):
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, _GOOD.replace("3e-4", schedule))
    assert len(str(caught.value).splitlines()) == 1
    assert says in str(caught.value)


def test_the_learning_rates_of_all_rules(tmp_path):
    from jaxopt_large.config import learning_rates

    matrices = "{rule: muon, learning_rate: 0.02, other: {rule: adamw, learning_rate: 0.01}}"
    text = _GOOD.replace('    "*":', f'    "*bias": {{rule: freeze}}\n    "*w": {matrices}\n    "*":')
    rates = learning_rates(_load(tmp_path, text))
    assert rates == {"*w: muon": 0.02, "*w: adamw": 0.01, "*: adamw": 3e-4}


_CONFIGS = Path(__file__).parents[2] / "configs"
_PUBLISHED = {
    "gpt2_124m": (124e6, 0.01),
    "bert_base": (109_482_240, 0.0),
    "t5_3b": (2_851_598_336, 0.0),
    "gpt3_175b": (175e9, 0.01),
    "llama3_8b": (8_030_261_248, 0.0),
    "moe_8x7b": (46_702_792_704, 0.0),
}


@pytest.mark.parametrize("file", sorted(_CONFIGS.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_configuration_loads_and_says_what_to_expect(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert not re.search(r"X\.X|\bN minutes", first), "a figure is still to be written"
    config = load(file)
    assert _load_again(config) == config


def _load_again(config):
    from jaxopt_large.config import Config

    return Config.model_validate(config.model_dump())


@pytest.mark.parametrize("name", sorted(_PUBLISHED))
def test_large_configurations_are_planned_without_allocating(name):
    from jaxopt_large.config import mesh_of
    from jaxopt_large.models import make_model
    from jaxopt_large.train.shardings import param_shardings

    config = load(_CONFIGS / f"{name}.yaml")
    abstract = make_model(config.model).abstract()
    published, tolerance = _PUBLISHED[name]
    count = sum(int(np.prod(x.shape, dtype=np.int64)) for x in jax.tree.leaves(abstract))
    assert count == pytest.approx(published, rel=tolerance, abs=0)
    mesh = mesh_of(config.placement)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        abstract,
        param_shardings(config, abstract, mesh),
    )
    rule = build(config, mesh=mesh)
    shardings = jl.state_shardings(rule, params)
    state = jl.abstract_state(rule, params)
    whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    each = sum(
        int(np.prod(s.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    )
    assert whole == pytest.approx(8 * count, rel=1e-3)
    # leaves under 64 KiB, biases and norms, are whole on each device
    small = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if x.size * x.dtype.itemsize < 2**16
    )
    assert each <= whole / config.placement.devices * 1.01 + small


def test_storage(tmp_path):
    text = _GOOD.replace(
        "  clip: 1.0",
        "  clip: 1.0\n  storage: {params: split, fields: {mu: int8, nu: {'*w': bfloat16, '*': int8}}}",
    )
    rule = build(_load(tmp_path, text), mesh=jax.sharding.AbstractMesh((4,), ("data",)))
    shapes = {name: jax.ShapeDtypeStruct((64, 128), jnp.bfloat16) for name in ("w", "v")}
    rows = {(r.path, r.where) for r in jl.explain(rule, shapes) if r.wrapper == "stored"}
    assert rows == {("w", "mu: int8"), ("v", "mu: int8"), ("w", "nu: bfloat16"), ("v", "nu: int8")}
    bad = text.replace("mu: int8", "mu: int9")
    with pytest.raises(ConfigError, match=r"optimizer.storage.fields.mu.*(int9|must be)"):
        _load(tmp_path, bad)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.vocabulary=100", "model.vocabulary: 100 is too small; bytes are 256"),
        ("model={kind: mlp, inputs: 63}", "model.inputs: 63 is not the number of pixels, 64"),
        ("model={kind: mlp, classes: 9}", "model.classes: 9 is too small; there are 10 digits"),
    ],
)
def test_a_model_that_does_not_fit_the_data(tmp_path, override, expected):
    """JAX would take another row of the embedding, and say nothing."""
    data = [] if "vocabulary" in override else ["data={kind: digits}"]
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, overrides=[override, *data])
    assert str(caught.value) == f"--set {override}: {expected}"


def test_off_needs_no_quotes(tmp_path):
    assert _load(tmp_path, _GOOD + "distributed: off\n").distributed == "off"
    assert _load(tmp_path, overrides=["distributed=off"]).distributed == "off"
    with pytest.raises(ConfigError, match=r"distributed: must be 'off' or 'auto' \(got True\)"):
        _load(tmp_path, _GOOD + "distributed: on\n")


@pytest.mark.parametrize(
    ("wrapper", "says"),
    [
        ("{wrapper: lookahead, sync_period: 0}", "0.sync_period: sync_period is out of range, got 0"),
        (
            "{wrapper: ema_of_params, foo: 1}",
            "0.foo: unknown key (got 'foo'); known keys are wrapper, decay, dtype",
        ),
        ("{wrapper: schedule_free}", "0.learning_rate: missing"),
        ("{wrapper: lookahed}", "0.wrapper: must be one of cautious, "),
        (
            "{wrapper: decoupled, weight_decay: -1}",
            "0.weight_decay: must be greater than or equal to 0 (got -1)",
        ),
    ],
)
def test_problems_of_wrappers_have_their_place(tmp_path, wrapper, says):
    text = _GOOD.replace("  clip: 1.0", f"  clip: 1.0\n  wrappers: [{wrapper}]")
    line = text.splitlines().index(f"  wrappers: [{wrapper}]") + 1
    with pytest.raises(jl.config.ConfigError) as caught:
        _load(tmp_path, text)
    assert f":{line}: optimizer.wrappers.{says}" in str(caught.value)
