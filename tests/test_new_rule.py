"""What CONTRIBUTING asks of a new rule is enough: its file, a line in the list, its oracle."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]
_ORACLE = """

@tried()
def signum(grads, p, lr, decay=0.9):
    m = np.zeros_like(p)
    for g in grads:
        m = decay * m + (1 - decay) * g
        p = p - lr * np.sign(m)
        yield p
"""
_PROGRAM = """
import jax.numpy as jnp, jaxopt_large as jl
assert "signum" in [row.name for row in jl.rules()]
params = {"dense": {"kernel": jnp.ones((128, 64))}}
assert any(row.rule == "signum" and row.field == "mu" for row in jl.explain(jl.signum(0.1), params).rows)
assert len(jl.explain_apply(jl.stored(jl.signum(0.1), mu=jl.int8()), params)) == 1
config = jl.load("configs/digits_mlp.yaml", ["optimizer.groups={'*': {rule: signum, learning_rate: 0.01, decay: 0.95}}"])
state = jl.build(config).init(params)
assert "ScaleBySignumState" in str(state), state
"""


@pytest.fixture
def copy(tmp_path):
    """The project with the rule of CONTRIBUTING's skeleton."""
    for name in ("jaxopt_large", "tests", "configs"):
        shutil.copytree(_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    skeleton = re.search(r"```python\n(.*?)```", (_ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "jaxopt_large/rules/signum.py").write_text(skeleton)
    for file, more in {"jaxopt_large/rules/__init__.py": "", "tests/oracles.py": _ORACLE}.items():
        text = (tmp_path / file).read_text()
        (tmp_path / file).write_text(
            text.replace("from .lion import *\n", "from .lion import *\nfrom .signum import *\n") + more
        )
    return tmp_path


def _run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow  # the contracts of one more rule, in a process of their own
def test_a_rule_is_its_file_a_line_and_an_oracle(copy):
    _run(copy, "-c", _PROGRAM)
    contracts = [
        "tests/contracts/test_numbers.py",
        "tests/contracts/test_state.py",
        "tests/contracts/test_any_rule.py",
    ]
    said = _run(copy, "-m", "pytest", "-q", "-k", "signum", "-m", "not full", *contracts)
    assert int(re.search(r"(\d+) passed", said).group(1)) > 20, said


def test_the_page_of_rules_is_what_they_say():
    made = runpy.run_path(str(_ROOT / "docs/make_rules.py"))["page"]()
    assert (_ROOT / "docs/RULES.md").read_text() == made, "make docs"
