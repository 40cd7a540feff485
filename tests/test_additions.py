"""What CONTRIBUTING asks of a new rule or format is enough: its file, a line in the list, its oracle."""

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

@tried(peer=False)
def qhm(grads, p, lr, decay=0.99, weight=0.7):
    m = np.zeros_like(p)
    for g in grads:
        m = decay * m + (1 - decay) * g
        p = p - lr * (weight * m + (1 - weight) * g)
        yield p
"""
_PROGRAM = """
import jax.numpy as jnp, jaxopt_large as jl
assert "qhm" in [row.name for row in jl.rules()]
params = {"dense": {"kernel": jnp.ones((128, 64))}}
assert any(row.rule == "qhm" and row.field == "mu" for row in jl.explain(jl.qhm(0.1), params).rows)
assert len(jl.explain_apply(jl.stored(jl.qhm(0.1), mu=jl.int8()), params)) == 1
config = jl.load("configs/digits_mlp.yaml", ["optimizer.groups={'*': {rule: qhm, learning_rate: 0.01, decay: 0.95}}"])
state = jl.build(config).init(params)
assert "ScaleByQhmState" in str(state), state
"""


_FORMAT = '''"""State in float16."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from ._format import Format


@dataclasses.dataclass(frozen=True)
class Float16(Format):
    name: ClassVar[str] = "float16"
    blocks: ClassVar[bool] = False
    bits: ClassVar[int] = 16

    def to_codes(self, x: Array, bits: Callable[[], Array]) -> Array:
        return x.astype(jnp.float16)

    def from_codes(self, codes: Array) -> Array:
        return codes.astype(jnp.float32)


def float16() -> Float16:
    """2 bytes per element."""
    return Float16()
'''
_STORED = """
import jax.numpy as jnp, jaxopt_large as jl
params = {"w": jnp.ones((64, 128))}
rule = jl.stored(jl.adamw(1e-3), mu=jl.float16())
params, state = jl.apply(rule, params, rule.init(params), params)
assert state.inner[0].mu["w"].codes.dtype == jnp.float16
assert "float16" in str(jl.explain(rule, params))
settings = ["optimizer.groups={'*': {rule: adamw, learning_rate: 0.01}}", "optimizer.storage={fields: {mu: float16}}"]
assert jl.build(jl.load("configs/digits_mlp.yaml", settings)).init(params).inner is not None
"""


@pytest.fixture
def copy(tmp_path):
    """The project, without what the two processes do not need."""
    for name in ("jaxopt_large", "tests", "configs"):
        shutil.copytree(_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def _edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def _run(folder, *command):
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow  # the contracts of one more rule, in a process of their own
def test_a_rule_is_its_file_a_line_and_an_oracle(copy):
    skeleton = re.search(r"```python\n(.*?)```", (_ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL).group(1)
    (copy / "jaxopt_large/rules/qhm.py").write_text(skeleton)
    line = "from .lion import *\n"
    _edit(copy / "jaxopt_large/rules/every.py", line, line + "from .qhm import *\n")
    with (copy / "tests/oracles/signs.py").open("a") as oracles:
        oracles.write(_ORACLE)
    _run(copy, "-c", _PROGRAM)
    contracts = [
        "tests/contracts/test_numbers.py",
        "tests/contracts/test_state.py",
        "tests/contracts/test_any_rule.py",
    ]
    said = _run(copy, "-m", "pytest", "-q", "-k", "qhm", "-m", "not full", *contracts)
    assert int(re.search(r"(\d+) passed", said).group(1)) > 15, said


@pytest.mark.slow  # a process of its own
def test_a_format_is_its_file_and_a_line(copy):
    (copy / "jaxopt_large/storage/float16.py").write_text(_FORMAT)
    formats = copy / "jaxopt_large/storage/formats.py"
    _edit(
        formats,
        "from .float32 import float32\n",
        "from .float16 import float16\nfrom .float32 import float32\n",
    )
    _edit(formats, "for make in (float32, ", "for make in (float32, float16, ")
    _run(copy, "-c", _STORED)


def test_the_page_of_rules_is_what_they_say():
    made = runpy.run_path(str(_ROOT / "docs/make_rules.py"))["page"]()
    assert (_ROOT / "docs/RULES.md").read_text() == made, "make docs"
