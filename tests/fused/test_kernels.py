"""Kernels: the same bits as the rule op by op, lowered for GPUs, and the parts of which they are made."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType

import jaxopt_large as jl
from jaxopt_large.fused import _kernel, _lowerable
from jaxopt_large.fused._step import Step, step_of
from jaxopt_large.fused._tiles import tile_for

from . import cases

_ROOT = Path(__file__).parents[2]


def _run_exact(part, parts):
    """Cases in a process of its own: its compiler flags differ."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fused.exact", str(part), str(parts)],
        cwd=_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert not [line for line in lines if line.startswith("DIFFERS")], done.stdout
    assert int(lines[-1].split()[1]) > 8


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
def test_the_same_bits_as_the_rule_op_by_op(part):
    _run_exact(part, 5)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("part", [2, 3, 4])
def test_the_same_bits_as_the_rule_op_by_op_in_all_pairs(part):
    _run_exact(part, 5)


def _passes(rule, shape, dtype=jnp.float32, gradient=None):
    params = jax.ShapeDtypeStruct(shape, dtype)
    grads = jax.ShapeDtypeStruct(shape, gradient or dtype)
    state = jax.eval_shape(rule.init, params)
    return Step.taken(step_of(rule, {}), (grads, state, params)).passes, (grads, state, params)


_GPU = [
    (name, formats, list(cases.PARAMS)[n % 4], [(256, 4096), (300, 1300)][n % 2])  # whole tiles, masked ones
    for n, (name, formats) in enumerate(cases.pairs(cases.RULES, ("int8", "float8")))
]


@pytest.mark.parametrize(("name", "formats", "kind", "shape"), _GPU)
def test_every_kernel_lowers_through_triton(name, formats, kind, shape):
    try:
        from jax._src.mesh import AbstractDevice
    except ImportError:
        pytest.skip("this JAX has no abstract devices")
    dtype, gradient, kept = cases.PARAMS[kind]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rule = cases.rule_of(name, formats, kept)
        _, args = _passes(rule, shape, dtype, gradient)
        device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
        mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            step = jax.jit(functools.partial(jl.apply, rule, kernels="gpu"))
            text = step.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize(
    "shape", [(4096, 4096), (50257, 768), (12, 768, 768), (12, 768, 3072), (3, 3, 512, 100), (7, 129)]
)
@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_tiles_are_what_chips_take(shape, target):
    rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    (pass_,), _ = _passes(rule, (7000, shape[1]) if shape == (7, 129) else shape)
    tile = tile_for(pass_, target)
    assert tile.columns % 128 == 0
    if target == "gpu":
        assert all(n & (n - 1) == 0 for n in tile)
        assert tile.rows * tile.columns <= 2**14
    else:
        assert tile.rows == pass_.shape[-2] or tile.rows % 128 == 0
        assert tile.columns >= pass_.shape[-1] or tile.columns % 1024 == 0


@pytest.mark.parametrize(
    ("rule", "shape", "target", "why"),
    [
        (lambda: jl.adamw(1e-3), (70000,), "tpu", "fewer than two axes"),
        (lambda: jl.adamw(1e-3), (256, 4, 512), "tpu", "longest axis is not one of the last two"),
        (lambda: jl.adamw(1e-3), (64, 8192, 4), "tpu", None),
    ],
)
def test_why_there_is_no_kernel(rule, shape, target, why):
    passes, _ = _passes(jl.stored(rule(), mu=jl.int8(), nu=jl.int8()), shape)
    found = [_kernel.why_not(p, target) for p in passes]
    assert all(f is None for f in found) if why is None else why in found[0]


def test_a_rule_with_an_equation_that_chips_lack_is_left_to_xla():
    def update(updates, state, params=None):
        del params
        new = jax.tree.map(lambda g, t: jax.lax.erf_inv(0.1 * g) + t, updates, state.trace)
        return new, optax.TraceState(new)

    rule = optax.GradientTransformation(lambda p: optax.TraceState(jax.tree.map(jnp.zeros_like, p)), update)
    (pass_,), _ = _passes(jl.stored(rule, trace=jl.int8()), (256, 1024))
    assert _kernel.why_not(pass_, "tpu") == "its equations have erf_inv"


def test_a_rule_of_ones_own_gets_the_kernel():
    def update(updates, state, params=None):
        del params
        new = jax.tree.map(lambda g, t: jnp.tanh(g) * 0.5 + 0.9 * t, updates, state.trace)
        return jax.tree.map(lambda t: -0.01 * jnp.sign(t), new), optax.TraceState(new)

    rule = optax.GradientTransformation(lambda p: optax.TraceState(jax.tree.map(jnp.zeros_like, p)), update)
    rule, params = jl.stored(rule, trace=jl.int8()), {"w": jnp.ones((256, 1024))}
    (row,) = jl.explain_apply(rule, params, platform="tpu")
    assert (row.way, row.ratio) == ("kernel", 1.0)
    got, _ = jl.apply(rule, params, rule.init(params), params, kernels="interpret")
    np.testing.assert_allclose(got["w"], 0.99)


_VALUES = np.concatenate(
    [np.linspace(-4, 4, 65), [0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e-30, 3.4e38, np.inf, -np.inf, np.nan, 0.0]]
).astype(np.float32)


@pytest.mark.parametrize(
    "function",
    [
        jnp.round,
        jnp.isfinite,
        jnp.square,
        jnp.sign,
        lambda x: x**3,
        lambda x: jnp.clip(x, -1.0, 1.0),
        lambda x: jax.lax.reduce_precision(x, 8, 7),
        lambda x: jnp.clip(jnp.where(x == x, x, 0.0), -100, 100).astype(jnp.int8),
        lambda x: (jax.lax.bitcast_convert_type(x, jnp.uint32)).astype(jnp.float32),
        lambda x: jnp.clip(jnp.where(x == x, x, 0.0), 0, 100).astype(jnp.uint8).astype(jnp.float32),
    ],
)
def test_what_kernel_compilers_lack_is_made_of_what_they_have(function):
    x = jnp.asarray(_VALUES)
    (got,) = _lowerable.evaluated(jax.make_jaxpr(function)(x), [x])
    np.testing.assert_array_equal(got, function(x))


def test_explanation():
    rule = jl.stored(optax.chain(jl.adamw(1e-3)), mu=jl.int8(), nu=jl.int8())
    params = {"b": jnp.ones(512), "w": jnp.ones((512, 512)), "z": jnp.ones((40, 160))}
    b, w, z = jl.explain_apply(rule, params, platform="gpu")
    assert (b.way, w.way, z.way) == ("xla", "kernel", "xla")
    assert z.why == "6400 elements, under 65536: fused with its neighbors"
    size = 512 * 512
    assert w.read == size * (4 + 4 + 1 + 1) + 2 * size // 32
    assert w.written == size * (4 + 1 + 1) + 2 * size // 32
    assert w.floor == w.read + w.written
    assert z.ratio > 2
    assert "one tile after another" in str(jl.explain_apply(rule, params, platform="tpu"))
    cut = optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (jax.tree.map(jnp.sort, g), s))
    (row,) = jl.explain_apply(cut, {"w": jnp.ones((8, 4))}, platform="tpu")
    assert row.way == "xla"
