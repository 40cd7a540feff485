"""Strict settings for every test: 8 simulated devices, no implicit promotion, warnings are errors."""

import contextlib
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# what two workers, or the processes that tests start, would each compile is compiled once
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from jaxtyping import install_import_hook

from . import typechecker as typechecker  # the hook looks it up by name

with install_import_hook("jaxopt_large", "tests.typechecker.checked"):  # shapes and types of every call
    pass

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


# `make compat` installs the core alone
collect_ignore_glob = [] if importlib.util.find_spec("pydantic") else ["config/*", "data/*", "train/*"]


@pytest.fixture
def x64():
    enable = getattr(jax, "enable_x64", None)
    if enable is None or not callable(enable):
        from jax.experimental import enable_x64 as enable
    with enable(True):
        yield


@pytest.fixture(scope="session")
def mesh8():
    from jaxopt_large._compat import make_mesh

    return make_mesh((8,), ("data",))


@pytest.fixture
def quiet_console():
    from rich.console import Console

    with open(os.devnull, "w") as nowhere, contextlib.closing(nowhere):
        yield Console(file=nowhere)
