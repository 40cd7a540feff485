"""optax's own tests of its optimizers, which its wheel holds, run on ours of the same names."""

import types

import jax
import pytest
from optax._src import alias

import jaxopt_large as jl

theirs = pytest.importorskip("optax._src.alias_test")

OURS = ("adagrad", "adam", "adamw", "lion", "rmsprop", "sgd")
SLOW = ("test_optimization", "test_state_shape_dtype")  # 10,000 steps each; a compilation for each dtype
ALWAYS = ("adamw", "rmsprop")  # of the slow ones, in float32


def settings(name):
    """What absl runs one of optax's tests with."""
    cells = [c.cell_contents for c in getattr(theirs.AliasTest, name).__closure__ or ()]
    return next((c for c in cells if isinstance(c, dict)), {})


def reason(name, given):
    """Why a test asserts what we do not want."""
    if name.startswith("test_explicit_dtype"):
        params, state = given["params_dtype"], given["state_dtype"]
        if state is None and params == "bfloat16":
            return "moments in bfloat16 unless asked: there a mean loses small gradients; ours are float32"
        if params == "complex64" and state in ("bfloat16", "float32"):
            return "a real dtype for the momentum of complex parameters loses its imaginary part"
    return ""


def cases():
    for name in vars(theirs.AliasTest):
        given = settings(name) if name.startswith("test_") else {}
        rule = given.get("opt_name", "").removesuffix("_mom")
        if rule in OURS:
            why, marks = reason(name, given), []
            if why:
                marks.append(pytest.mark.skip(reason=why))
            representative = rule in ALWAYS and "float32" in str(given.get("dtype"))
            if name.startswith(SLOW) and not (
                representative and "rosenbrock" not in str(given.get("target"))
            ):
                marks.append(pytest.mark.full)
            shown = [getattr(x, "__name__", x) for k, x in given.items() if k != "opt_kwargs"]
            yield pytest.param(name, marks=marks, id="-".join(map(str, [name.rstrip("0123456789"), *shown])))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(cases()))
def test_theirs(name, monkeypatch):
    names = {**vars(alias), **{rule: getattr(jl, rule) for rule in OURS}}
    monkeypatch.setattr(theirs, "alias", types.SimpleNamespace(**names))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs.AliasTest(name).debug()
