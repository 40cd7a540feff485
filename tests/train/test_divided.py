"""A model's run is the same however its parameters, gradients and state are divided."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large.config import ConfigError, mesh_of
from jaxopt_large.gradient_norm import watched
from jaxopt_large.models import make_model
from jaxopt_large.train import RunError
from jaxopt_large.train.execution import make_execution
from jaxopt_large.train.shardings import param_shardings, with_fsdp

from .runs import CONFIGS

_MODEL = "{kind: transformer, layers: 2, width: 64, heads: 4, remat: true, tied: true}"
_SETS = ["data.context=64", f"model={_MODEL}", "train.batch=16"]
_TENSOR = (
    "params: {'*qkv': [null, null, null, model], '*up': [null, null, model], '*out|*down': [null, model], "
    "embed: [model]}"
)
_FSDP = "fsdp: data, layers: 'layers/*'"
_WAYS = {
    "zero": ["placement={mesh: {data: 8}, zero: data}"],
    "fsdp": [f"placement={{mesh: {{data: 8}}, zero: data, {_FSDP}}}"],
    "fsdp without zero": [f"placement={{mesh: {{data: 8}}, {_FSDP}}}"],
    "tensor": [f"placement={{mesh: {{data: 4, model: 2}}, zero: data, {_TENSOR}}}"],
    "fsdp and tensor": [
        f"placement={{mesh: {{data: 4, model: 2}}, zero: data, {_FSDP}, {_TENSOR}}}",
        "train.accumulate=2",
    ],
    "sharded": ["placement={mesh: {data: 8}, zero: data}", "train.accumulate=2"],
    "deferred": [
        f"placement={{mesh: {{data: 4, model: 2}}, zero: data, {_TENSOR}}}",
        "train.accumulate=2",
        "train.accumulation=deferred",
    ],
}


def _execution(*overrides):
    config = jl.load(CONFIGS / "stdlib_gpt.yaml", [*_SETS, *overrides])
    mesh = mesh_of(config.placement)
    return make_execution(config, make_model(config.model), jl.build(config, mesh=mesh, around=watched), mesh)


def _trained(*overrides, steps=50):
    run, random = _execution(*overrides), np.random.default_rng(0)
    params, state = run.init(jax.random.key(0))
    losses = []
    for _ in range(steps):
        batch = {"tokens": random.integers(0, 256, (16, 65)).astype(np.int32)}
        params, state, metrics = run.step(params, state, run.placed(batch))
        losses.append(float(metrics.loss))
    return np.array(losses), params


@functools.cache
def _alone():
    return _trained("placement={mesh: {data: 8}}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [pytest.param(w, marks=() if w in ("fsdp and tensor", "deferred") else pytest.mark.full) for w in _WAYS],
)
def test_the_same_run(way):
    losses, params = _trained(*_WAYS[way])
    np.testing.assert_allclose(losses, _alone()[0], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), params, _alone()[1])


def test_where_parameters_are():
    run = _execution(*_WAYS["fsdp and tensor"])
    params, _ = run.init(jax.random.key(0))
    specs = {name: x.sharding.spec for name, x in params["layers"]["attn"].items()}
    assert specs == {"norm": P(), "out": P(None, "model", "data"), "qkv": P(None, "data", None, "model")}
    assert params["embed"].sharding.spec == P("model", "data")
    held = params["layers"]["mlp"]["up"].addressable_shards[0].data.size
    assert held == params["layers"]["mlp"]["up"].size // 8


def test_deferred_reduces_once_a_step():
    overrides = ["placement={mesh: {data: 8}, zero: data}", "train.accumulate=4", "train.batch=32"]
    run = _execution(*overrides, "train.accumulation=deferred")
    assert _in_loops(run) == 0
    assert _in_loops(_execution(*overrides)) > 0


def _in_loops(run):
    """Bytes of gradients that are reduced for each micro-batch."""
    params, state = run.init(jax.random.key(0))
    batch = {"tokens": np.zeros((4, 8, 65), np.int32)}
    found = jl.plan.collectives(run._step.lower(params, state, batch).compile()).inside_loops()
    return found.bytes("all-reduce") + found.bytes("reduce-scatter")


@pytest.mark.parametrize(
    ("shape", "parts", "layers", "expected"),
    [
        ((96, 12288, 49152), [(), (), ("model",)], True, [(), ("data",), ("model",)]),
        # 12,288 / 128 columns would cut blocks of 128
        ((96, 12288, 12288), [(), ("model",), ()], True, [(), ("model", "data"), ()]),
        ((96, 49152, 12288), [(), ("model",), ()], True, [(), ("model", "data"), ()]),
        ((50304, 12288), [("model",), ()], False, [("model",), ("data",)]),
        ((96, 12288), [(), ()], True, [(), ()]),
        ((12288,), [()], False, [()]),
        ((7, 9), [(), ()], False, [(), ()]),
        ((1280, 1280), [("data",), ()], False, [("data",), ()]),
    ],
)
def test_which_dimension_is_divided(shape, parts, layers, expected):
    mesh = jax.sharding.AbstractMesh((128, 8), ("data", "model"))
    assert with_fsdp(parts, shape, "data", mesh, layers=layers) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["placement={mesh: {data: 2}, fsdp: modle}"], "fsdp: the mesh has no axis 'modle'"),
        (["placement={mesh: {data: 2, other: 2}, fsdp: other}"], "over the data axis, 'data', got 'other'"),
        (["placement={mesh: {data: 2}, params: {'*': [[data, modle]]}}"], "the mesh has no axis 'modle'"),
        (["placement={mesh: {data: 2}, params: {'*': [[data, data]]}}"], "has one twice"),
        (["placement={mesh: {data: 2}, parallel: pmap, fsdp: data}"], "params and fsdp must be empty"),
        (["placement={mesh: {data: 2}, fsdp: data}", "train.accumulation=deferred"], "deferred needs parameters"),
        (["placement={mesh: {data: 2}, params: {'*up': [null, data]}}", "train.accumulation=deferred"], "'*up'"),
        (["placement={mesh: {data: 2}, parallel: pmap}", "train.accumulation=deferred"], "reduces once as it is"),
        (["train.accumulation=later"], "sharded"),
        (["model.kv_heads=3"], "is not divisible by the 3 kv_heads"),
    ],
)  # fmt: skip
def test_what_cannot_be(overrides, expected):
    with pytest.raises(ConfigError) as caught:
        jl.load(CONFIGS / "stdlib_gpt.yaml", [*_SETS, *overrides])
    assert expected in str(caught.value)


def test_layers_that_match_nothing():
    config = jl.load(
        CONFIGS / "stdlib_gpt.yaml", ["placement={mesh: {data: 8}, fsdp: data, layers: 'layer/*'}"]
    )
    with pytest.raises(Exception, match=r"placement: layers matches no parameter, got 'layer/\*'"):
        param_shardings(config, make_model(config.model).abstract(), mesh_of(config.placement))


def test_a_matrix_that_nothing_divides():
    sets = ["placement={mesh: {data: 8}, fsdp: data}", "model.hidden=[333, 701]", "train.batch=64"]
    config = jl.load(CONFIGS / "digits_mlp.yaml", sets)
    with pytest.raises(
        RunError, match=r"fsdp finds no dimension of \(333, 701\) that data=8 divides too at dense_1/"
    ):
        param_shardings(config, make_model(config.model).abstract(), mesh_of(config.placement))


def test_state_in_the_host_with_divided_parameters():
    run = _execution(f"placement={{mesh: {{data: 8}}, zero: data, {_FSDP}, offload: '*'}}")
    params, state = run.init(jax.random.key(0))
    random = np.random.default_rng(0)
    batch = {"tokens": random.integers(0, 256, (16, 65)).astype(np.int32)}
    _, _, metrics = run.step(params, state, run.placed(batch))
    assert np.isfinite(metrics.loss)
