"""What an import costs, and what the public surface is."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxopt_large as jl

_EXTRAS = ("orbax", "grain", "pydantic", "yaml", "tyro", "rich", "matplotlib", "sklearn", "flax", "equinox")


def _modules_after(code):
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in out.stdout.splitlines()[-1].split()}


@pytest.mark.compat
def test_the_core_imports_no_extra():
    loaded = _modules_after("import jaxopt_large as jl; jl.adamw; jl.zero; jl.save")
    assert "jax" in loaded
    assert not loaded & set(_EXTRAS)


def test_help_imports_no_jax():
    code = "from jaxopt_large.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    loaded = _modules_after(code)
    assert "tyro" in loaded
    assert not loaded & {"jax", "optax", "numpy", "orbax", "grain", "sklearn"}


def test_the_surface_is_re_exports_only():
    import jaxopt_large._api as api

    tree = ast.parse(Path(api.__file__).read_text())
    imports = list(tree.body[1:])
    assert all(isinstance(node, ast.ImportFrom) for node in imports)
    names = [alias for node in imports for alias in node.names]
    assert all(alias.asname == alias.name for alias in names)
    assert {alias.name for alias in names} <= set(dir(jl))


def test_every_public_function_has_a_docstring_with_its_parts():
    for name in dir(jl):
        thing = getattr(jl, name)
        if callable(thing) and getattr(thing, "__module__", "").startswith("jaxopt_large"):
            assert thing.__doc__, name
            assert thing.__doc__.strip().splitlines()[0].endswith("."), name


def test_the_command_line_says_what_is_missing(monkeypatch, capsys):
    import importlib.util

    from jaxopt_large import cli

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        cli.main(["train", "x.yaml"])
    assert "pip install 'jaxopt_large[train,viz]'" in capsys.readouterr().err
