"""Triton in one place: nothing of its end reaches users, and without it XLA runs."""

import functools
import re
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxopt_large as jl
from jaxopt_large.fused.targets import _triton

from . import cases

_PACKAGE = Path(jl.__file__).parent
_NEWEST = tuple(int(n) for n in jax.__version__.split(".")[:2]) >= (0, 11)


def _int8(shape):
    rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())
    params = jax.ShapeDtypeStruct(shape, jnp.float32)
    return rule, (params, jax.eval_shape(rule.init, params), params)


def _step(rule):
    return functools.partial(jl.apply, rule, kernels="gpu")


def _by_hand():
    """A user's own kernel."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def double(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    call = pl.pallas_call(double, out_shape=x, compiler_params=triton.CompilerParams())
    return call, x


@pytest.mark.compat
@pytest.mark.parametrize("shape", [(256, 1024), (300, 1300)])  # whole tiles, masked ones
def test_lowering_says_nothing_to_users(shape):
    rule, args = _int8(shape)
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        text = cases.lowered_for_gpus(_step(rule), args)
    assert "triton" in text
    assert not [w for w in found if "Triton" in str(w.message)]
    assert list(warnings.filters) == before


@pytest.mark.compat
@pytest.mark.skipif(not _NEWEST, reason="JAX before 0.11 says nothing")
def test_kernels_of_users_own_are_still_warned_of():
    rule, args = _int8((256, 1024))
    cases.lowered_for_gpus(_step(rule), args)
    double, x = _by_hand()
    with pytest.warns(DeprecationWarning, match="Pallas Triton backend is deprecated"):
        cases.lowered_for_gpus(double, [x])


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    _triton._pallas.cache_clear()
    yield
    _triton._pallas.cache_clear()


@pytest.mark.usefixtures("without_triton")
def test_a_jax_without_triton_is_left_to_xla():
    rule, params = _int8((256, 1024))[0], {"w": jnp.ones((256, 1024))}
    (row,) = jl.explain_apply(rule, params, platform="gpu")
    assert (row.way, row.why) == ("xla", "this JAX has no Pallas Triton")
    (row,) = jl.explain_apply(rule, params, platform="tpu")
    assert row.way == "kernel"
    state = rule.init(params)
    got, want = (jl.apply(rule, params, state, params, kernels=k)[0]["w"] for k in ("gpu", "xla"))
    np.testing.assert_array_equal(got, want)
    step = jax.jit(lambda *args: jl.apply(rule, *args))
    assert "triton" not in step.trace(params, state, params).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize(
    ("capability", "format", "why"),
    [
        (7.5, jl.int8, "a GPU of compute capability 7.5; kernels are compiled for 8.0 and newer"),
        (8.0, jl.float8, "float8 on a GPU of compute capability 8.0; 8.9 and newer have it"),
        (8.0, jl.int8, None),
        (8.9, jl.float8, None),
    ],
)
def test_a_gpu_that_the_compiler_refuses_is_left_to_xla(monkeypatch, capability, format, why):
    monkeypatch.setattr(_triton, "_capability", lambda: capability)
    rule = jl.stored(jl.rmsprop(1e-3), nu=format())
    (row,) = jl.explain_apply(rule, {"w": jnp.ones((256, 1024))}, platform="gpu")
    assert (row.way, row.why if why else None) == ("xla" if why else "kernel", why)


def test_arrays_that_addresses_do_not_reach_are_left_to_xla():
    params = {"w": jax.ShapeDtypeStruct((2**16, 2**15 + 128), jnp.float32)}
    (row,) = jl.explain_apply(_int8((8, 128))[0], params, platform="gpu")
    assert row.way == "xla"
    assert row.why == f"{2**31 + 2**23} elements, over {2**31}"


def test_one_module_knows_of_triton():
    others = [f for f in _PACKAGE.rglob("*.py") if f.name != "_triton.py"]
    assert len(others) > 80
    assert not [f.name for f in others if re.search(r"(?<!_)triton", f.read_text(), re.IGNORECASE)]
