"""Kernels for NVIDIA GPUs: all that knows of Triton, which Pallas is going to drop."""

import contextlib
import dataclasses
import functools
import importlib
import threading
import warnings
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp

from ...passes.passes import Pass

_WARPS = 4
_OLDEST = 8.0  # compute capability: Ampere. Of what is older the compiler says so, and of float8 below
_OLDEST_FLOAT8 = 8.9  # it ends the process
_MOST = 2**31  # elements; addresses have 32 bits with a sign, in arrays of up to 2^32 bytes
_NOTICE = "The Pallas Triton backend is deprecated"
_one_at_a_time = threading.RLock()  # filters of warnings belong to all threads


def why_not(pass_: Pass) -> str | None:
    """Why no kernel can run a pass on the GPU that is here, or on a new one where none is; None: one can."""
    if _pallas() is None:
        return "this JAX has no Pallas Triton"
    capability = _capability()
    if capability is not None and capability < _OLDEST:
        return f"a GPU of compute capability {capability}; kernels are compiled for {_OLDEST} and newer"
    kinds = [pass_.types[v].dtype for v in (*pass_.inputs, *pass_.results.values())]
    if (
        capability is not None
        and capability < _OLDEST_FLOAT8
        and any("float8" in kind.name for kind in kinds)
    ):
        return f"float8 on a GPU of compute capability {capability}; {_OLDEST_FLOAT8} and newer have it"
    return f"{pass_.size} elements, over {_MOST}" if pass_.size > _MOST else None


def options() -> dict[str, Any]:
    """Arguments of `pallas_call`."""
    return {"compiler_params": _quiet_params()(num_warps=_WARPS)}


def load(ref: Any, where: tuple[Any, ...], mask: Any) -> Any:
    """What of an array the mask lets through, and zeros."""
    return _pallas().load(ref.at[where], mask=mask, other=jnp.zeros((), ref.dtype))


def store(ref: Any, where: tuple[Any, ...], mask: Any, x: Any) -> None:
    """Writes what the mask lets through."""
    _pallas().store(ref.at[where], x, mask=mask)


@functools.cache
def _pallas() -> Any:
    """Pallas' part for Triton; None: this JAX has none."""
    with _no_notice():
        try:
            return importlib.import_module("jax.experimental.pallas.triton")
        except ImportError:
            return None


@functools.cache
def _capability() -> float | None:
    """The compute capability of the GPU that is here; None: none is."""
    try:
        device, *_ = jax.local_devices(backend="gpu")
        return float(device.compute_capability)
    except (RuntimeError, ValueError):  # AMD's have names
        return None


@functools.cache
def _quiet_params() -> Any:
    """Triton's parameters as a class of our own: JAX lowers what has them by our rule.

    The notice comes when a kernel is lowered, in whatever `jit` the user has around `apply`, who can do
    nothing about it. Filters for good would also hide it from those who write such kernels themselves.
    """

    theirs: Any = _pallas().CompilerParams

    @dataclasses.dataclass(frozen=True)
    class Params(theirs):
        pass

    try:
        from jax.extend.pallas import register_lowering_rule
    except ImportError:  # JAX before 0.10: nothing is deprecated
        return Params
    register_lowering_rule(Params, _lowered, "gpu")
    return Params


def _lowered(ctx: Any, *operands: Any, compiler_params: Any, **params: Any) -> Any:
    """What Pallas itself makes of a kernel."""
    from jax.interpreters import mlir

    theirs = _pallas().CompilerParams(num_warps=compiler_params.num_warps)
    lower = mlir.lower_fun(functools.partial(ctx.primitive.bind, compiler_params=theirs, **params))
    with _no_notice():
        return lower(ctx, *operands)


@contextlib.contextmanager
def _no_notice() -> Generator[None]:
    with _one_at_a_time, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_NOTICE, category=DeprecationWarning)
        yield
