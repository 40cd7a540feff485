"""Every notebook runs from top to bottom, and is stored without its outputs."""

import re
import sys
from pathlib import Path

import pytest

import jaxopt_large as jl

nbformat = pytest.importorskip("nbformat")
_RARE = ("02", "04")  # of which `make test-all` sees whether they run
_NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own machinery may warn
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=pytest.mark.full if p.stem[:2] in _RARE else ()) for p in _NOTEBOOKS],
)
def test_it_runs(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    pictures = [
        o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    warned = [
        o["text"] for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"
    ]
    assert len(pictures) >= 2
    assert not warned, warned


@pytest.mark.parametrize("path", _NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)


def _install_cell(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return cells[0]


class _Shell:
    """IPython, as far as the cell needs it: `%pip` brings the package."""

    def __init__(self):
        self.names, self.lines = {"get_ipython": lambda: self}, []

    def run_line_magic(self, name, line):
        self.lines.append(f"%{name} {line.format(**self.names)}")
        sys.modules["jaxopt_large"] = jl


@pytest.fixture
def install(monkeypatch, tmp_path):
    """Runs the first cell in a folder where the package is missing; returns what it had installed."""
    transform = pytest.importorskip("IPython.core.inputtransformer2").TransformerManager().transform_cell
    monkeypatch.chdir(tmp_path)

    def run(source=""):
        cell = _install_cell(_NOTEBOOKS[0]).replace('SOURCE = ""', f"SOURCE = {source!r}")
        shell = _Shell()
        monkeypatch.setitem(sys.modules, "jaxopt_large", None)
        exec(transform(cell), shell.names)
        return shell.lines

    return run


def test_one_cell_installs_in_all_notebooks():
    cells = [re.sub("scikit-learn ", "", _install_cell(path)) for path in _NOTEBOOKS]
    assert len(set(cells)) == 1


def _clone(folder):
    (folder / "jaxopt_large").mkdir(parents=True)
    (folder / "jaxopt_large" / "__init__.py").touch()
    return folder


def test_a_clone_beside_the_notebook_is_installed(install, tmp_path, capsys):
    _clone(tmp_path / "jaxopt_large")
    (line,) = install()
    assert line.startswith(f'%pip install -q "{tmp_path / "jaxopt_large"}" ')
    assert re.search(r" jax==[\d.]+ jaxlib==[\d.]+$", line)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_clone_around_the_notebook_is_installed(install, tmp_path, monkeypatch):
    notebooks = _clone(tmp_path / "somewhere") / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    assert f'"{tmp_path / "somewhere"}"' in install()[0]


def test_a_wheel_beside_the_notebook_is_installed(install, tmp_path):
    for version in ("0.9.0", "0.10.0"):
        (tmp_path / f"jaxopt_large-{version}-py3-none-any.whl").touch()
    assert "jaxopt_large-0.10.0-py3-none-any.whl" in install()[0]


def test_an_address_in_the_cell_comes_first(install, tmp_path):
    _clone(tmp_path / "jaxopt_large")
    assert '"git+https://example.org/x.git"' in install("git+https://example.org/x.git")[0]


def test_a_folder_in_the_cell_is_no_name(install, tmp_path):
    _clone(tmp_path / "jaxopt_large")
    assert f'"{tmp_path / "jaxopt_large"}"' in install("jaxopt_large")[0]


@pytest.mark.parametrize("source", ["", "jaxopt_large", "jaxopt-large[train]"])
def test_nothing_is_installed_by_name(install, source):
    with pytest.raises(ImportError, match="put a clone or a wheel of it beside this notebook, or set SOURCE"):
        install(source)


_ROOT = Path(__file__).parents[1]
_BARE = re.compile(
    r"(?:pip3?|uv|add) (?:install|add)[^\n|;&]*?[ '\"]jaxopt[_-]large(?:\[[^\]]*\])?+(?! @)(?![-\w./])"
)


def test_no_document_installs_a_name_that_nobody_has_registered():
    assert _BARE.search("%pip install -q jaxopt_large scikit-learn")
    assert _BARE.search("pip install 'jaxopt-large[train]'")
    assert not _BARE.search("pip install 'jaxopt_large[train] @ ADDRESS'")
    assert not _BARE.search("pip install ./jaxopt_large-0.1.0-py3-none-any.whl")
    texts = [
        f
        for g in ("*.md", "docs/**/*.md", "notebooks/*.ipynb", "jaxopt_large/**/*.py")
        for f in _ROOT.glob(g)
    ]
    assert len(texts) > 50
    assert not [f.name for f in texts if _BARE.search(f.read_text())]
