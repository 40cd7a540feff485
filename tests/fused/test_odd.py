"""Rules, states and places that a split must not get wrong."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large.passes import codecs

from .cases import arrays


def _plain(rule):
    def step(grads, state, params):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def _int8(**options):
    return jl.stored(jl.adamw(1e-2), mu=jl.int8(), nu=jl.int8(), **options)


def _rule(update, init=lambda params: ()):
    return optax.GradientTransformation(init, lambda g, s, p=None: update(g, s, p))


@pytest.mark.parametrize("field", ["blocks", "none"])
@pytest.mark.parametrize("kernels", ["auto", "xla", "interpret"])
def test_leaves_of_one_shape_divided_in_different_ways(field, kernels):
    format = jl.int8() if field == "blocks" else jl.bfloat16()
    rule = jl.stored(jl.sgd(1e-2, momentum=0.9), trace=format)
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Explicit,) * 2)
    specs = {"a": P("d", None), "b": P(None, "m"), "c": P()}
    with jax.set_mesh(mesh):
        params = {
            k: jax.device_put(arrays((64, 1024), jnp.float32, ord(k)), NamedSharding(mesh, s))
            for k, s in specs.items()
        }
        state = jl.init_state(rule, params)
        got, new = jax.jit(functools.partial(jl.apply, rule, kernels=kernels))(params, state, params)
        want, _ = jax.jit(_plain(rule))(params, state, params)
        for k, x in got.items():
            assert x.sharding.is_equivalent_to(params[k].sharding, 2)
            np.testing.assert_allclose(x, want[k], rtol=1e-6)
        for x, y in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
            assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_what_leaves_an_axis_open_or_names_no_place():
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
    open_ = NamedSharding(mesh, P(P.UNCONSTRAINED, "m"))
    rule = optax.chain(
        _int8(),
        _rule(lambda g, s, p: (jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, open_), g), s)),
    )
    params = {"w": arrays((64, 1024), jnp.float32, 0)}
    got, _ = jax.jit(functools.partial(jl.apply, rule))(params, rule.init(params), params)
    want, _ = jax.jit(_plain(rule))(params, rule.init(params), params)
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6)


def test_arrays_that_move_together():
    device = jax.devices()[0]
    rule = optax.chain(_rule(lambda g, s, p: (jax.device_put(g, device), s)), optax.sgd(0.1))
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones(3), "c": jnp.ones(2)}
    got, _ = jax.jit(functools.partial(jl.apply, rule))(params, rule.init(params), params)
    np.testing.assert_allclose(got["b"], 0.9)


def test_partly_manual_axes():
    mesh = jax.make_mesh((4, 2), ("d", "m"), axis_types=(AxisType.Auto,) * 2)
    rule = jl.zero(_int8(), mesh, "m")
    params = {"w": arrays((256, 1024), jnp.float32, 0)}
    state = rule.init(params)
    step = jax.shard_map(
        functools.partial(jl.apply, rule),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(),
        axis_names={"d"},
        check_vma=False,
    )
    got, _ = jax.block_until_ready(jax.jit(step)(params, state, params))
    want, _ = jax.block_until_ready(jax.jit(_plain(rule))(params, state, params))
    # near 0 the sum of a parameter and its change is that of two numbers a thousand times as large
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_functions_with_a_derivative_of_their_own(kind):
    if kind == "vjp":
        f = jax.custom_vjp(lambda x: jnp.round(x))
        f.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (3.0 * g,))
    else:
        f = jax.custom_jvp(lambda x: jnp.round(x))
        f.defjvp(lambda x, t: (jnp.round(*x), 3.0 * t[0]))
    rule = _rule(lambda g, s, p: (jax.tree.map(f, g), s))
    params = {"w": arrays((64, 128), jnp.float32, 0)}

    def loss(step, scale):
        new, _ = step(jax.tree.map(lambda p: p * scale, params), (), params)
        return jnp.sum(new["w"] ** 2)

    got, want = (
        jax.grad(functools.partial(loss, s))(2.0) for s in (functools.partial(jl.apply, rule), _plain(rule))
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert want != 0


def test_a_state_that_changes_its_dtype():
    def update(g, s, p):
        return g, jax.tree.map(lambda x: (x + 1).astype(jnp.bfloat16), s)

    rule = optax.chain(
        jl.stored(optax.trace(0.9), trace=jl.int8()),
        _rule(update, lambda p: jax.tree.map(jnp.zeros_like, p)),
    )
    params = {"w": arrays((256, 512), jnp.float32, 0)}
    for kernels in ("auto", "interpret"):
        got = jax.jit(functools.partial(jl.apply, rule, kernels=kernels))(params, rule.init(params), params)
        assert got[1][1]["w"].dtype == jnp.bfloat16
        np.testing.assert_allclose(got[1][1]["w"].astype(jnp.float32), 1.0)


def test_updates_of_weak_type_and_python_numbers():
    params = {"w": arrays((8, 16), jnp.bfloat16, 0), "s": 2.0}
    for update in (lambda g: jnp.full(jnp.shape(g), 0.1003), lambda g: 0.1003):
        rule = _rule(lambda g, s, p, update=update: (jax.tree.map(update, g), s))
        with jax.numpy_dtype_promotion("standard"):
            got, _ = jl.apply(rule, params, (), params)
            want, _ = _plain(rule)(params, (), params)
        np.testing.assert_array_equal(got["w"], want["w"])
        assert float(got["s"]) == float(want["s"])


def test_nothing_is_compiled_again_outside_jit():
    rule, params = jl.adam(1e-2), {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8))}
    carry = (params, rule.init(params))
    sizes = []
    from jaxopt_large.passes import engine

    for _ in range(3):
        carry = jl.apply(rule, params, carry[1], carry[0])
        sizes.append(len(engine._outside_jit))
    assert sizes[1] == sizes[2]


def test_codecs_of_equal_looks_have_names_of_their_own():
    class One:
        def __repr__(self):
            return "the same"

    found = []
    for _ in range(2):
        mark = codecs.CodecCall("decode", (), (), lambda *_: None)
        function = codecs.codec_call(lambda x: x, "same", One(), mark)
        found.append((jax.make_jaxpr(function)(1.0).jaxpr.eqns[0], mark))
    assert all(codecs.codec_of(eqn) is mark for eqn, mark in found)


def test_leaves_that_share_a_constant_go_each_by_itself():
    mask = jnp.asarray(np.random.default_rng(0).integers(0, 2, (256, 512)), jnp.float32)
    rule = optax.chain(_rule(lambda g, s, p: (jax.tree.map(lambda x: x * mask, g), s)), _int8())
    params = {k: arrays((256, 512), jnp.float32, ord(k)) for k in "ab"}
    rows = jl.explain_apply(rule, params, platform="tpu")
    assert [row.way for row in rows] == ["kernel", "kernel"]
    assert rows[0].floor < 256 * 512 * 17
    got, _ = jax.jit(functools.partial(jl.apply, rule, kernels="interpret"))(
        params, rule.init(params), params
    )
    want, _ = jax.jit(_plain(rule))(params, rule.init(params), params)
    np.testing.assert_allclose(got["b"], want["b"], rtol=1e-6, atol=1e-6)


def test_explanations_of_what_is_not_one_pass():
    number, matrix = jl.explain_apply(
        jl.adam(1e-2), {"s": jnp.float32(1.0), "w": jnp.ones((8, 8))}, platform="tpu"
    )
    assert number.why == "a number: bytes are not counted"
    assert matrix.ratio == 1.0
    (row,) = jl.explain_apply(_int8(), {"w": jnp.ones((512, 512))})  # eight devices, and nothing tells
    assert (row.way, row.why) == (
        "xla",
        "the layout of its arrays on the mesh is not known; zero or Explicit axes tell it",
    )
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rule = jl.stored(optax.contrib.muon(1e-2), mu=jl.int8())
        (row,) = jl.explain_apply(rule, {"w": jnp.ones((512, 512))}, platform="tpu")
    assert "XLA makes" in row.why
    assert row.ratio > 1


_ONE_DEVICE = """
import functools, jax, jax.numpy as jnp, numpy as np, optax, jaxopt_large as jl

def plain(rule):
    def step(grads, state, params):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state
    return step

def compare(rule, params, steps=3, loops=1):
    grads = [jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(s).normal(size=p.shape), p.dtype), params) for s in range(steps)]
    fast, slow = jax.jit(functools.partial(jl.apply, rule)), jax.jit(plain(rule))
    got = want = (params, rule.init(params))
    for g in grads:
        got, want = fast(g, got[1], got[0]), slow(g, want[1], want[0])
    assert fast.lower(g, got[1], got[0]).compile().as_text().count(" while(") >= loops
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert np.mean(np.abs(x - y) > 1e-5 + 1e-4 * np.abs(y)) < 2e-3, rule

int8 = lambda **kw: jl.stored(jl.adamw(1e-2), mu=jl.int8(), nu=jl.int8(), **kw)
params = {"a": jnp.ones((300, 300)), "b": jnp.full((2, 130, 257), 0.5), "c": jnp.ones((300, 300)), "d": jnp.ones(7)}
"""
_FIRST = """
compare(optax.chain(jl.clip_by_global_norm(1.0), jl.skip_nonfinite(int8())), params, loops=2)  # a and c share one

format = jl.int8()  # codecs without a key of a step, and without an encoder
signed = format.of_sign(True)
anchored = optax.GradientTransformation(
    lambda p: jax.tree.map(lambda x: signed.encode(x), p),
    lambda g, s, p=None: (jax.tree.map(lambda x: -0.1 * x, g), jax.tree.map(lambda e: signed.encode(0.5 * signed.decode(e)), s, is_leaf=lambda x: hasattr(x, "codes"))),
)
compare(anchored, {"w": jnp.ones((512, 256))}, loops=0)
kept = optax.GradientTransformation(anchored.init, lambda g, s, p=None: (jax.tree.map(lambda x, e: -0.1 * x - signed.decode(e), g, s, is_leaf=lambda x: hasattr(x, "codes")), s))
compare(kept, {"w": jnp.ones((512, 256))}, loops=0)

rule, w = int8(), jnp.ones((512, 256))
state = rule.init(w)
loss = lambda x: jnp.sum(jl.apply(rule, w * x, state, w)[0] ** 2)
assert np.isfinite(jax.grad(loss)(0.5)) and np.isfinite(jax.jit(jax.grad(loss))(0.5))
jax.jvp(loss, (0.5,), (1.0,))
jitted = jax.jit(loss)
np.testing.assert_allclose(jax.grad(jitted)(0.5), jax.grad(loss)(0.5), atol=1e-2)
updated = lambda x: jnp.sum(jax.jit(rule.update)(w * x, state, w)[0] ** 2)
np.testing.assert_allclose(jax.grad(updated)(0.5), jax.grad(loss)(0.5), atol=1)
assert np.isfinite(jax.grad(updated)(0.5))
norm = lambda x: jl.global_norm(w * x)
np.testing.assert_allclose(jax.grad(norm)(0.5), norm(1.0), rtol=1e-5)
mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
with jax.set_mesh(mesh):
    (row,) = jl.explain_apply(rule, {"w": w})
    assert row.way == "loop", row
    assert "stablehlo.while" in jax.jit(functools.partial(jl.apply, rule)).lower(w, state, w).as_text()
with jax.set_mesh(jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))):
    p = jax.device_put(w, jax.sharding.PartitionSpec())
    np.testing.assert_allclose(jl.apply(rule, p, rule.init(p), p)[0], jl.apply(rule, w, state, w)[0], rtol=1e-6)
"""
_MORE = """
compare(int8(params=jl.split()), jax.tree.map(lambda p: p.astype(jnp.bfloat16), params), loops=3)
compare(int8(), params, loops=2)
compare(jl.stored(jl.lion(1e-3), mu=jl.int4()), params, loops=2)
"""


@pytest.mark.slow  # a process of its own, with one device
@pytest.mark.parametrize(
    "program", [_FIRST, pytest.param(_MORE, marks=pytest.mark.full)], ids=["first", "more"]
)
def test_in_a_process_with_one_device(program):
    done = subprocess.run(
        [sys.executable, "-c", _ONE_DEVICE + program], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
