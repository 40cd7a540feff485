"""What happens once per rule grows with the leaves, and no faster."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxopt_large as jl

_PACKAGE = str(Path(jl.__file__).parent)
_SHAPES = [(16, 160), (64, 64), (128,), (8, 8)]
_FEW = 100


@pytest.fixture(autouse=True)
def no_cache():
    """What another test has put into the cache takes fewer calls."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def _params(leaves):
    return {f"layer_{n:04}": jnp.zeros(_SHAPES[n % len(_SHAPES)]) for n in range(leaves)}


def _rules(mesh):
    rule = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    grouped = jl.partition({"*3": jl.freeze(), "*1": jl.adamw(1e-3), "*": rule})
    formats = {"mu": jl.int8(), "nu": jl.int8()}
    return {
        "partition": grouped,
        "stored": jl.stored(rule, **formats),
        "zero": jl.zero(rule, mesh, "data"),
        "accumulate": jl.accumulate(rule, 4),
        "all": jl.zero(jl.accumulate(jl.stored(grouped, **formats), 4), mesh, "data"),
    }


def _update(rule, params, state):
    jax.jit(rule.update).trace(params, state, params)


def _apply(rule, params, state):
    jax.jit(lambda g, s, p: jl.apply(rule, g, s, p)).trace(params, state, params)


_WORKS = {
    "init": lambda rule, params, state: rule.init(params),
    "explain": lambda rule, params, state: str(jl.explain(rule, params)),
    "state_shardings": lambda rule, params, state: jl.state_shardings(rule, params),
    "update": _update,
    "apply": _apply,
}


def _counted(work):
    """Lines of this package that ran, equations among what they go through, and functions called elsewhere."""
    count = 0

    def lines(frame, event, arg):
        nonlocal count
        count += event == "line"
        return lines

    def calls(frame, event, arg):
        nonlocal count
        count += 1
        return lines if frame.f_code.co_filename.startswith(_PACKAGE) else None

    jax.clear_caches()
    before = sys.gettrace()
    sys.settrace(calls)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("what", _WORKS)
@pytest.mark.parametrize(
    ("name", "few"),
    [
        *(
            pytest.param(n, _FEW, marks=pytest.mark.full)
            for n in ("partition", "stored", "zero", "accumulate", "all")
        ),
        ("all", 40),
    ],
)
def test_four_times_the_leaves_are_at_most_four_times_the_work(name, few, what, mesh8):
    rule, counts = _rules(mesh8)[name], []
    for leaves in (few, 4 * few):
        params = _params(leaves)
        state = rule.init(params) if what in ("update", "apply") else None
        counts.append(_counted(lambda p=params, s=state: _WORKS[what](rule, p, s)))
    assert counts[1] <= 4 * counts[0], counts


def test_restoring_grows_no_faster(mesh8, tmp_path):
    rule, counts = _rules(mesh8)["all"], []
    for leaves in (_FEW // 4, _FEW):  # writing takes long
        state = rule.init(_params(leaves))
        jl.save(tmp_path / str(leaves), state)
        counts.append(_counted(lambda s=state, n=leaves: jl.restore(tmp_path / str(n), s)))
    assert counts[1] <= 4 * counts[0], counts
