"""Updates window by window: the same numbers as all at once, and no decoded copy of a leaf.

XLA:CPU contracts a * b + c * d to one rounding less, here or there, depending on what is fused with it:
between the two ways the last bit of a float32 may differ, and a code where it decides.
"""

import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large.passes import loop
from jaxopt_large.passes.windows import regions
from jaxopt_large.storage import _update, formats

SHAPES = {
    "rows": (96, 256),
    "one row after the other": (3, 1024),
    "layers": (4, 40, 384),
    "a rest": (53, 200),
    "a rest in layers": (2, 37, 256),
    "a vector": (9000,),
    "narrow": (640, 24),
}
RULES = {
    "adamw": (lambda: jl.adamw(1e-2), ("mu", "nu")),
    "optax.adamw": (lambda: optax.adamw(1e-2), ("mu", "nu")),
    "lion": (lambda: jl.lion(1e-2), ("mu",)),
    "sgd": (lambda: jl.sgd(1e-2, momentum=0.9), ("trace",)),
    "clip": (lambda: optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-2)), ("mu", "nu")),
    "lamb": (lambda: optax.lamb(1e-2), ("mu", "nu")),  # norms of each leaf's own update
    "adafactor": (
        lambda: optax.adafactor(1e-2, momentum=0.9),
        ("ema", "v_row"),
    ),  # leaves too narrow to factor
    "skip": (lambda: jl.skip_nonfinite(jl.adamw(1e-2)), ("mu", "nu")),  # inside a branch
    "partition": (
        lambda: jl.partition({"*l*": jl.lion(1e-2), "*": jl.adamw(1e-2)}),
        ("mu", "nu"),
    ),
}
FORMATS = {name: make for name, make in formats.FORMATS.items() if name != "float32"}
PARAMS = {"float32": None, "rounded": jl.rounded(), "split": jl.split()}


@pytest.fixture
def windows(monkeypatch):
    """Sets how the next step is compiled: in so many windows per leaf, or (None) all at once."""

    def set_to(count):
        monkeypatch.setattr(_update, "runs_in_windows", lambda updates, params: count is not None)
        monkeypatch.setattr(_update, "FEWEST", 2048)
        monkeypatch.setattr(loop, "_FEWEST", 1024)  # windows as small as test arrays ask for
        monkeypatch.setattr(loop, "_WINDOWS", count)

    return set_to


def _draw(seed, names=SHAPES, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return {k: jnp.asarray(rng.normal(size=SHAPES[k]), dtype) for k in names} | {"b": jnp.ones(7, dtype)}


def _like(p, seed):
    return jnp.asarray(np.random.default_rng((seed, p.size)).normal(size=p.shape), p.dtype)


def _run(rule, params, steps):
    """Updates, parameters and state after some steps, and how many loops the step has."""
    state = rule.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return updates, optax.apply_updates(params, updates), state

    for seed in range(steps):
        grads = jax.tree.map(lambda p, seed=seed: _like(p, 10 + seed), params)
        updates, params, state = step(params, state, grads)
    loops = step.lower(params, state, grads).as_text().count("stablehlo.while")
    return (updates, params, state), loops


def _assert_close(got, want):
    """All but a few codes are equal, and those are neighbors; other numbers differ in their last bits."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if np.issubdtype(a.dtype, np.integer):
            off = np.abs(a.astype(int) - b.astype(int))
            assert np.max(off) <= 1
            assert np.mean(off) < 1e-3
        else:
            a, b = a.astype(np.float32), b.astype(np.float32)
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


_MARKS = {
    "clip": [pytest.mark.compat],
    **{name: [pytest.mark.full] for name in ("optax.adamw", "sgd", "partition", "lion", "skip")},
}


@pytest.mark.parametrize("rule", [pytest.param(name, marks=_MARKS.get(name, [])) for name in RULES])
def test_the_same_numbers_as_all_at_once(rule, windows):
    make, fields = RULES[rule]
    start = _draw(0, ["layers", "a rest"])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        kept = jl.stored(make(), **{field: jl.int8() for field in fields})
        windows(None)
        whole, none = _run(kept, start, 2)
        windows(5)
        got, loops = _run(kept, start, 2)
    assert loops - none == 3  # the rest has its own
    _assert_close(got, whole)


_TREES = {"a rest": ["layers", "a rest in layers"], "vectors": ["layers", "a vector", "narrow"]}
_FIRST = {
    ("int8", "split", "vectors"),
}


@pytest.mark.parametrize(
    ("format", "params", "tree"),
    [
        pytest.param(*case, marks=[] if case in _FIRST else [pytest.mark.full])
        for case in itertools.product(FORMATS, PARAMS, _TREES)
    ],
)
def test_the_same_bits_in_parts_of_any_size(format, params, tree, windows):
    params = PARAMS[params]
    rule = jl.stored(jl.adamw(1e-2), params=params, mu=FORMATS[format](), nu=FORMATS[format]())
    start = _draw(0, _TREES[tree], jnp.float32 if params is None else jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # for `apply_updates`
        made = {}
        for share in (None, 5, 13):
            windows(share)
            made[share], loops = _run(rule, start, 2)
    assert (loops > 0) == (format != "bfloat16")  # which has no scales
    if format != "int4":  # where one code makes a difference
        _assert_close(made[5], made[None])
        _assert_close(made[5], made[13])
    updates = [made[share][0]["layers"] for share in (5, 13)]
    np.testing.assert_array_equal(*updates)


def test_regions_fill_an_array_once():
    for shape in SHAPES.values():
        seen = np.zeros(shape, int)
        for region in regions(shape, 1024):
            for n in range(region.rounds):
                starts = region.starts(n)
                seen[tuple(slice(int(s), int(s) + k) for s, k in zip(starts, region.shape, strict=True))] += 1
        assert np.all(seen == 1), shape


def _stateful(step):
    """A rule with momentum whose updates are made by `step`."""

    def update(updates, state, params=None):
        mu = jax.tree.map(lambda m, g: 0.9 * m + g.astype(m.dtype), state.trace, updates)
        return step(mu), optax.TraceState(mu)

    def zeros(params):
        return optax.TraceState(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))

    return optax.GradientTransformation(zeros, update)


_CONSTANT = np.linspace(-1, 1, 96 * 256, dtype=np.float32).reshape(96, 256)


def _frozen(mu):
    return mu | {"b": None}


_UNUSUAL = {
    "no update for a leaf": (_frozen, None),
    "bfloat16 updates": (lambda mu: jax.tree.map(lambda m: m.astype(jnp.bfloat16), mu), jl.rounded()),
    "an array in the rule": (lambda mu: mu | {"rows": mu["rows"] * _CONSTANT}, None),
    "leaves that mix": (lambda mu: mu | {"b": mu["b"] + jnp.mean(mu["rows"])}, None),
}


@pytest.mark.parametrize("name", _UNUSUAL)
def test_unusual_rules(name, windows):
    step, params = _UNUSUAL[name]
    rule = jl.stored(_stateful(step), params=params, trace=jl.int8())
    start = _draw(0, ["rows"], jnp.float32 if params is None else jnp.bfloat16)
    made = []
    with jax.numpy_dtype_promotion("standard"):
        for share in (None, 5):
            windows(share)
            state = rule.init(start)
            for seed in (1, 2):
                grads = jax.tree.map(lambda p, seed=seed: _like(p, seed), start)
                updates, state = jax.jit(lambda g, s: rule.update(g, s, start))(grads, state)
            made.append((updates, state))
    assert jax.tree.structure(made[0]) == jax.tree.structure(made[1])
    if params is None:  # a code of difference may round a parameter the other way
        _assert_close(made[1], made[0])


def test_what_a_rule_does_besides_is_done(windows):
    windows(5)
    seen = []

    def step(mu):
        jax.debug.callback(lambda x: seen.append(float(x)), jnp.sum(mu["b"]))
        return mu

    rule = jl.stored(_stateful(step), trace=jl.int8())
    params = _draw(0, ["rows"])
    jax.block_until_ready(jax.jit(rule.update)(params, rule.init(params)))
    jax.effects_barrier()
    assert len(seen) == 1


_ALONE = """
import json, jax, jax.numpy as jnp, optax, jaxopt_large as jl

rule = jl.stored(jl.adamw(1e-3), mu=jl.int8(), nu=jl.int8())

def step(params, state, grads):
    updates, state = rule.update(grads, state, params)
    return optax.apply_updates(params, updates), state

found = {}
for leaves in (1, 6):
    params = {str(i): jnp.ones((512, 2048)) for i in range(leaves)}
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, rule.init(params), params)
    memory = lowered.compile().memory_analysis()
    found[leaves] = memory.temp_size_in_bytes / (4 * 512 * 2048), memory.alias_size_in_bytes

# numbers, by the way that is taken here and by the other
import jaxopt_large.storage._update as one
grads = jax.tree.map(lambda p: jax.random.normal(jax.random.key(1), p.shape), params)
ways, helps = [], one.runs_in_windows
for helps in (helps, lambda updates, params: False):
    one.runs_in_windows = helps
    state = rule.init(params)
    jitted = jax.jit(lambda p, s, g: step(p, s, g))
    loops = "while" in jitted.lower(params, state, grads).as_text()
    for _ in range(3):
        p, state = jitted(params, state, grads)
    ways.append((p, state, loops))
assert (ways[0][2], ways[1][2]) == (True, False)
for a, b in zip(jax.tree.leaves(ways[0][:2]), jax.tree.leaves(ways[1][:2])):
    off = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))
    assert float(jnp.max(off)) <= (1 if a.dtype.itemsize == 1 else 1e-5), (a.dtype, jnp.max(off))
print(json.dumps(found))
"""


@pytest.mark.compat
@pytest.mark.slow  # a process of its own, with one device
def test_no_decoded_copy_of_a_leaf():
    """Temporaries are one leaf of updates, whatever the number of leaves, and one part of each array."""
    alone = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
    out = subprocess.run(
        [sys.executable, "-c", _ALONE], capture_output=True, text=True, check=True, env=os.environ | alone
    )
    for leaves, (temporaries, aliased) in json.loads(out.stdout).items():
        assert temporaries < 1.2, (leaves, temporaries)
        assert aliased > int(leaves) * 512 * 2048 * 6  # parameters and codes are written in place
