"""What is handed to users: wheel and sdist are whole, and the wheel works beside JAX alone."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import jaxopt_large as jl

pytestmark = pytest.mark.packaging

_ROOT = Path(__file__).parents[1]
_OLDEST = "0.7.2"
_PROGRAM = """
import importlib.metadata, importlib.util, jax, jax.numpy as jnp, optax, jaxopt_large as jl
assert importlib.util.find_spec("orbax") is None and importlib.util.find_spec("yaml") is None
rule = jl.stored(optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3)), mu=jl.int8(), nu=jl.int8())
params = {"w": jnp.ones((64, 128))}
state = rule.init(params)
params, state = jax.jit(lambda g, s, p: jl.apply(rule, g, s, p))(params, state, params)
assert float(params["w"].max()) < 1
print(jl.explain(rule, params))
print(jax.__version__, importlib.metadata.version("jaxopt_large"), jl.__file__)
"""


def _run(*command, **options):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment | {"JAX_PLATFORMS": "cpu"}, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of a wheel, and of an sdist from which it was made."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--outdir", folder, _ROOT)
    return folder


def _only(folder, pattern):
    (found,) = folder.glob(pattern)
    return found


def _sources():
    files = [f for f in (_ROOT / "jaxopt_large").rglob("*") if f.is_file() and f.suffix != ".pyc"]
    return {f.relative_to(_ROOT).as_posix() for f in files}


def test_registries_would_take_both(built):
    assert _run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()).count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = set(zipfile.ZipFile(_only(built, "*.whl")).namelist())
    about = {n for n in names if ".dist-info/" in n}
    assert names - about == _sources()
    assert "jaxopt_large/py.typed" in names
    assert any(n.endswith("licenses/LICENSE") for n in about)


def test_the_sdist_holds_what_the_wheel_and_its_tests_are_made_of(built):
    with tarfile.open(_only(built, "*.tar.gz")) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "tests/conftest.py"} | _sources() <= names
    assert not [n for n in names if re.match(r"\.venv|dist/|build/|runs/|\.git/|\..*_cache", n)]


def test_the_wheel_works_beside_the_oldest_jax_alone(built, tmp_path):
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(*pip, _only(built, "*.whl"), f"jax=={_OLDEST}", f"jaxlib=={_OLDEST}", cwd=tmp_path)
    *table, last = _run(python, "-W", "error", "-c", _PROGRAM, cwd=tmp_path).splitlines()
    assert "int8" in "\n".join(table)
    jax_version, version, file = last.split()
    assert (jax_version, version) == (_OLDEST, jl.__version__)
    assert file.startswith(str(tmp_path))
    said = subprocess.run(
        [python.with_name("jaxopt-large"), "train"], capture_output=True, text=True, cwd=tmp_path
    )
    assert said.returncode == 2
    assert "the command line needs the extra `train`" in said.stderr
