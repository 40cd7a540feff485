"""Kernels: the same bits as the rule op by op, lowered for GPUs, and the parts of which they are made."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas as pl

import jaxopt_large as jl
from jaxopt_large.fused import _kernel, _lowerable
from jaxopt_large.fused._step import Step, step_of
from jaxopt_large.fused.targets import TARGETS, _triton
from jaxopt_large.passes.loop import Hold

from . import cases

_ROOT = Path(__file__).parents[2]


_PARTS = 12  # of the cases; each runs for half a minute


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
    assert int(lines[-1].split()[1]) > 5


@pytest.mark.slow
def test_the_same_bits_as_the_rule_op_by_op():
    _run_exact(0, _PARTS)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, _PARTS))
def test_the_same_bits_as_the_rule_op_by_op_in_all_pairs(part):
    _run_exact(part, _PARTS)


def _passes(rule, shape, dtype=jnp.float32, gradient=None):
    params = jax.ShapeDtypeStruct(shape, dtype)
    grads = jax.ShapeDtypeStruct(shape, gradient or dtype)
    state = jax.eval_shape(rule.init, params)
    return Step.taken(step_of(rule, {}), (grads, state, params)).split.passes, (grads, state, params)


_GPU = [
    (name, formats, list(cases.PARAMS)[n % 4], [(256, 4096), (300, 1300)][n % 2])  # whole tiles, masked ones
    for n, (name, formats) in enumerate(cases.pairs(cases.RULES, ("int8", "float8")))
]


@pytest.mark.parametrize(("name", "formats", "kind", "shape"), _GPU)
def test_every_kernel_lowers_for_gpus(name, formats, kind, shape):
    dtype, gradient, kept = cases.PARAMS[kind]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rule = cases.rule_of(name, formats, kept)
        _, args = _passes(rule, shape, dtype, gradient)
        text = cases.lowered_for_gpus(functools.partial(jl.apply, rule, kernels="gpu"), args)
    assert text.count("__gpu$xla.gpu.triton") == 1


@pytest.mark.parametrize(
    "shape", [(4096, 4096), (50257, 768), (12, 768, 768), (12, 768, 3072), (3, 3, 512, 100), (7, 129)]
)
@pytest.mark.parametrize("target", ["tpu", "gpu"])
def test_tiles_are_what_chips_take(shape, target):
    rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    (pass_,), _ = _passes(rule, (7000, shape[1]) if shape == (7, 129) else shape)
    tile = TARGETS[target].tile(pass_)
    assert tile.columns % 128 == 0
    if target == "gpu":
        assert all(n & (n - 1) == 0 for n in tile)
        assert tile.rows * tile.columns <= 2**11
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
    found = [_kernel.why_not(p, TARGETS[target]) for p in passes]
    assert all(f is None for f in found) if why is None else why in found[0]


def _registers(jaxpr):
    """How many registers of 1,024 numbers the results of all equations fill: what Mosaic unrolls."""
    found = 0
    for eqn in jaxpr.eqns:
        inner = [
            getattr(x, "jaxpr", x) for x in eqn.params.values() if hasattr(getattr(x, "jaxpr", x), "eqns")
        ]
        found += sum(map(_registers, inner))
        if not inner:
            found += sum(-(-math.prod(v.aval.shape) // 1024) for v in eqn.outvars if v.aval.shape)
    return found


@pytest.mark.parametrize("shape", [(50257, 768), (768, 3072), (12, 768, 768), (200, 500), (32, 65536)])
def test_code_does_not_grow_with_tiles(shape):
    """Compilers take seconds where all of a tile is unrolled."""
    (pass_,), _ = _passes(jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8()), shape)
    tile = TARGETS["tpu"].tile(pass_)
    assert tile.rows * tile.columns >= min(math.prod(shape), 2**16)  # what is moved at once stays large
    traced = jax.make_jaxpr(
        lambda *a: _kernel.kernel(pass_, [Hold()] * len(pass_.results), *a, TARGETS["tpu"])
    )
    numbers = [jax.ShapeDtypeStruct(pass_.types[v].shape, pass_.types[v].dtype) for v in pass_.scalars]
    arrays = [jax.ShapeDtypeStruct(pass_.types[v].shape, pass_.types[v].dtype) for v in pass_.inputs]
    (call,) = [e for e in traced(arrays, numbers).jaxpr.eqns if e.primitive.name == "pallas_call"]
    assert _registers(call.params["jaxpr"]) < 200 * 2 * 16  # equations of a run of 128 x 128


def test_a_rule_with_an_equation_that_chips_lack_is_left_to_xla():
    def update(updates, state, params=None):
        del params
        new = jax.tree.map(lambda g, t: jax.lax.erf_inv(0.1 * g) + t, updates, state.trace)
        return new, optax.TraceState(new)

    rule = optax.GradientTransformation(lambda p: optax.TraceState(jax.tree.map(jnp.zeros_like, p)), update)
    (pass_,), _ = _passes(jl.stored(rule, trace=jl.int8()), (256, 1024))
    assert _kernel.why_not(pass_, TARGETS["tpu"]) == "its equations have erf_inv"


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
    (got,) = _lowerable.run_lowerable(jax.make_jaxpr(function)(x), [x])
    np.testing.assert_array_equal(got, function(x))


_OF_HALVES = [
    jnp.divide,
    jnp.sqrt,
    jax.lax.rsqrt,
    jnp.exp,
    jnp.log,
    jnp.tanh,
    jax.nn.sigmoid,
    jnp.floor,
    jnp.round,
]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("function", _OF_HALVES)
def test_of_16_bit_floats_compilers_have_what_they_have_of_32(function, dtype):
    x = jnp.linspace(0.25, 4, 1024, dtype=dtype).reshape(8, 128)
    args = [x, x[::-1]] if function is jnp.divide else [x]
    closed = jax.make_jaxpr(function)(*args)
    (got,) = _lowerable.run_lowerable(closed, args)
    assert got.dtype == dtype
    one_place = jnp.finfo(dtype).eps  # XLA rounds more often within a sigmoid
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(function(*args), np.float32), rtol=one_place
    )

    def body(*refs):
        (refs[-1][...],) = _lowerable.run_lowerable(closed, [ref[...] for ref in refs[:-1]])

    call = pl.pallas_call(body, out_shape=x, **_triton.options())
    assert "triton" in cases.lowered_for_gpus(call, args)


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
