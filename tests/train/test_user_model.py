"""A model of one's own in a plan."""

import sys

import jax
import jax.numpy as jnp
import pytest

import jaxopt_large as jl
from jaxopt_large.train import RunError
from jaxopt_large.train.user_model import plan_of_model, user_model

from .runs import CONFIGS

_MODULE = """
import jax
import jax.numpy as jnp

def shapes():
    return {"w": jax.ShapeDtypeStruct((1024, 512), jnp.float32), "b": jax.ShapeDtypeStruct((512,), jnp.float32)}

def made():
    return {"w": jnp.ones((2**20, 2**20))}  # 4 TiB

def whole():
    def loss(params, batch):
        return jnp.mean(jnp.tanh(batch["x"] @ params["w"] + params["b"][None]) ** 2)
    return shapes(), loss, {"x": jax.ShapeDtypeStruct((4096, 1024), jnp.float32)}

def looks():
    return {"w": jnp.ones(4) if jnp.ones(()) > 0 else None}

def fails():
    raise KeyError("no weights")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    yield "my_model"
    sys.modules.pop("my_model", None)


def _config(*overrides):
    plain = ["placement.mesh={data: 8}", "placement.zero=data", "train.batch=4096"]
    return jl.load(CONFIGS / "digits_mlp.yaml", [*plain, *overrides])


def test_parameters_alone(module):
    found = plan_of_model(_config(), user_model(f"{module}:shapes"), chip="v5e")
    assert found.part("parameters") == 4 * (1024 * 512 + 512)
    assert not found.has_model


def test_arrays_are_not_made(module):
    found = user_model(f"{module}:made")
    assert found.params["w"].shape == (2**20, 2**20)
    assert found.loss is None


def test_a_loss_and_a_batch(module):
    found = plan_of_model(_config(), user_model(f"{module}:whole"))
    assert found.has_model
    rows = 4096 // 8  # of each device
    assert found.flops >= 2 * 2 * rows * 1024 * 512  # of the product and its weight's gradient
    assert found.part("activations") >= 4 * rows * 512  # what tanh gave
    assert found.collectives.bytes("reduce-scatter") == 4 * 1024 * 512
    assert found.collectives.bytes("all-gather") == 4 * 1024 * 512


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("looks", r"my_model:looks looks at values"),
        ("fails", r"my_model:fails failed, got KeyError: 'no weights'"),
        ("nothing", r"model is not found, got 'my_model:nothing'"),
    ],
)
def test_bad_functions(function, expected, module):
    with pytest.raises(RunError, match=expected):
        user_model(f"{module}:{function}")


def test_loss_without_batch():
    with pytest.raises(TypeError, match="loss and batch belong together"):
        jl.plan(jl.adam(1e-3), {"w": jnp.ones(4)}, loss=lambda p, b: p["w"].sum())


def test_flax_and_equinox_modules():
    """As the documentation shows."""
    nnx = pytest.importorskip("flax.nnx")
    eqx = pytest.importorskip("equinox")
    mesh = jax.sharding.AbstractMesh((8,), ("data",))
    rule = jl.zero(jl.adamw(1e-3), mesh, "data")

    abstract = nnx.eval_shape(lambda: nnx.Linear(512, 256, rngs=nnx.Rngs(0)))
    graph, params = nnx.split(abstract, nnx.Param)
    batch = jax.ShapeDtypeStruct((64, 512), jnp.float32)
    found = jl.plan(
        rule,
        nnx.to_pure_dict(params),
        mesh,
        chip="v5e",
        loss=lambda p, x: jnp.mean(_merged(nnx, graph, params, p)(x) ** 2),
        batch=batch,
    )
    assert found.part("parameters") == 4 * (512 * 256 + 256)
    assert found.flops > 0

    module = eqx.filter_eval_shape(eqx.nn.Linear, 512, 256, key=jax.random.key(0))
    leaves, static = eqx.partition(module, lambda x: hasattr(x, "dtype"))
    found = jl.plan(
        rule,
        leaves,
        mesh,
        chip="v5e",
        loss=lambda p, x: jnp.mean(jax.vmap(eqx.combine(p, static))(x) ** 2),
        batch=batch,
    )
    assert found.part("parameters") == 4 * (512 * 256 + 256)


def _merged(nnx, graph, like, values):
    state = jax.tree.map(lambda x: x, like)
    nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, state)


def _documented():
    text = (CONFIGS.parent / "docs" / "PLANNING.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    return blocks[0], {block.split("\n")[0]: block for block in blocks[1:]}


@pytest.mark.parametrize("first", _documented()[1])
def test_the_documentation(first, capsys):
    pytest.importorskip(first.split()[1].split(".")[0])
    setup, blocks = _documented()
    exec(setup + blocks[first], {})
    shown = capsys.readouterr().out
    assert "16 devices, v5e of 15.75 GiB" in shown
    assert "temporaries" in shown
