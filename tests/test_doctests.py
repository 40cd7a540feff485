"""The examples in the docstrings, each module's on its own."""

import doctest
import importlib
import os
import pkgutil
import tempfile

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_large as jl

_MODULES = sorted(
    m.name for m in pkgutil.walk_packages(jl.__path__, "jaxopt_large.") if not m.name.endswith("__main__")
)


@pytest.mark.parametrize("name", _MODULES)
def test_examples(name):
    names = {"jl": jl, "jax": jax, "jnp": jnp, "optax": optax, "os": os, "tempfile": tempfile}
    result = doctest.testmod(importlib.import_module(name), extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples():
    found = sum(
        len(test.examples)
        for name in _MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
    )
    assert found > 40
