"""What an import costs, and what the public surface is."""

import ast
import copy
import pickle
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
    names = [alias for node in imports for alias in node.names if alias.name != "*"]
    assert all(alias.asname == alias.name for alias in names)
    assert {alias.name for alias in names} <= set(dir(jl))
    lists = {node.module for node in imports if node.names[0].name == "*"}
    assert lists == {"rules.every", "schedules", "storage.formats", "wrappers.every"}


@pytest.mark.compat
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adamx", "the nearest are 'adamax', 'adam', "),
        ("AdamW", "the nearest are 'adamw'"),
        ("zeros", "the nearest are 'zero'"),
        ("scale_by_adma", "the nearest are .*'scale_by_adam'"),
        ("chian", r"optax has 'chain'\.$"),
        ("", "the nearest are"),
        ("adam.init", "the nearest are .*'adam'"),
        ("chain", r"Use optax\.chain\."),
        ("apply_updates", r"Use optax\.apply_updates\."),
        ("MultiSteps", r"Use optax\.MultiSteps\."),
        ("reduce_on_plateau", r"Use optax\.contrib\.reduce_on_plateau\."),
        ("__main__", "has no attribute '__main__'$"),
    ],
)
def test_a_name_that_is_not_here_says_what_to_write(name, says):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'") as raised:
        getattr(jl, name)
    assert raised.match(says)
    assert raised.value.name == name
    assert raised.value.obj is jl
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_a_module_that_is_not_loaded_is_named_as_one():
    code = "import jaxopt_large as jl\ntry: jl.models\nexcept AttributeError as e: print(e)\nimport jaxopt_large.models; jl.models"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == (
        "jaxopt_large: module has no attribute 'models'; it is a module of its own. Import jaxopt_large.models.\n"
    )


def test_the_files_of_rules_are_modules():
    import types

    import jaxopt_large.rules.adam as module
    from jaxopt_large.rules import lion

    assert isinstance(module, types.ModuleType)
    assert isinstance(lion, types.ModuleType)
    assert jl.adam is module.adam
    assert jl.rules()[0].name == "gradient_descent"


def test_what_asks_whether_a_name_is_there_is_told_that_it_is_not():
    assert not hasattr(jl, "adamx")
    assert not hasattr(jl, "chain")
    assert not hasattr(jl, "adam.init")
    assert getattr(jl, "adamx", None) is None
    assert not hasattr(jl, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'adamx'"):
        exec("from jaxopt_large import adamx")
    with pytest.raises(TypeError, match="cannot pickle"):  # as for any module
        copy.copy(jl)
    assert pickle.loads(pickle.dumps(jl.adamw)) is jl.adamw
    exec("from jaxopt_large import *", names := {})
    assert names["adamw"] is jl.adamw


def test_python_asks_for_its_own_names_without_jax():
    loaded = _modules_after("import jaxopt_large as jl; hasattr(jl, '__wrapped__'), hasattr(jl, '_x')")
    assert not loaded & {"jax", "optax", "numpy"}


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
    assert "pip install '.[train,viz]'" in capsys.readouterr().err
