"""Placement where it is easily wrong: several axes, odd rules, wrong orders, wrong input."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh
from jaxopt_large.placement._reductions import ReductionError

from ..catalog import like

P = PartitionSpec


def _bare(update, init=lambda params: optax.EmptyState()):
    return optax.GradientTransformation(init, update)


class _NormState(NamedTuple):
    norm: Any


def _init_that_reduces(params):
    return _NormState(jnp.sqrt(sum(jnp.sum(p**2) for p in jax.tree.leaves(params))))


_DEPENDENT = {
    "factored by shape": lambda: optax.adafactor(
        1e-2, clipping_threshold=None, multiply_by_parameter_scale=False
    ),
    "masked by size": lambda: optax.add_decayed_weights(
        0.1, mask=lambda p: jax.tree.map(lambda x: x.size > 10_000, p)
    ),
    "divided by size": lambda: _bare(lambda g, s, p=None: (jax.tree.map(lambda x: x / x.size, g), s)),
    "by place": lambda: _bare(
        lambda g, s, p=None: (
            jax.tree.map(lambda x: x * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), g),
            s,
        )
    ),
    "init reduces": lambda: _bare(
        lambda g, s, p=None: (jax.tree.map(lambda x: x * s.norm, g), s), _init_that_reduces
    ),
}


@pytest.mark.parametrize("name", _DEPENDENT)
def test_rules_whose_work_depends_on_the_share_are_refused(name):
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        pytest.raises(ReductionError, match="would see one device's share of each leaf"),
    ):
        jax.pmap(jl.zero(_DEPENDENT[name](), axis_name="i").init, axis_name="i")(
            jl.replicate({"w": jnp.ones((256, 256))})
        )


@pytest.mark.parametrize(
    "function", [lambda g: jnp.where(g > 0, g, 0.0), jnp.nan_to_num], ids=["where", "nan"]
)
def test_plain_elementwise_functions_are_not_refused(function):
    rule = jl.zero(_bare(lambda g, s, p=None: (jax.tree.map(function, g), s)), axis_name="i")
    grads = jl.replicate({"w": jnp.arange(-4.0, 60.0).reshape(8, 8)})
    got, _ = jax.pmap(lambda g: rule.update(g, rule.init(g)), axis_name="i")(grads)
    np.testing.assert_array_equal(jl.unreplicate(got)["w"], function(jl.unreplicate(grads)["w"]))


def test_axes_that_divide_a_parameter_already_are_not_divided_again():
    mesh = make_mesh((2, 2, 2), ("data", "fsdp", "model"))
    params = jax.device_put({"w": jnp.ones((256, 256))}, NamedSharding(mesh, P("fsdp")))
    rule = jl.zero(jl.adam(1e-3), mesh, ("data", "fsdp"))
    mu = rule.init(params).inner[0].mu["w"]
    assert mu.addressable_shards[0].data.nbytes == params["w"].nbytes // 4
    assert mu.sharding.spec == P(("fsdp", "data"))


def test_a_large_leaf_that_follows_nothing_is_an_error_beside_flattened_parameters(mesh8):
    rule = _bare(lambda g, s, p=None: (g, s), lambda p: {"gram": jnp.zeros((300, 200))})
    params = {"w": jnp.ones((31, 37, 41))}
    with pytest.raises(ValueError, match=r"cannot tell how a state leaf of shape .300, 200. follows"):
        jl.zero(rule, mesh8, "data").init(params)


def test_what_is_small_is_judged_by_its_state(mesh8):
    params = {"w": jnp.ones((240, 128), jnp.bfloat16)}  # 61 kB, and 122 kB for each moment
    specs = jl.state_specs(jl.zero(jl.adam(1e-3), mesh8, "data"), params)
    assert specs.inner[0].mu["w"] == P("data")


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("typed", [False, True], ids=["untyped", "typed"])
def test_tensor_parallel_parameters_inside_shard_map(name, typed):
    mesh = make_mesh((4, 2), ("data", "model"))
    inner = {"adamw": jl.adamw(1e-2), "lion": jl.lion(1e-3), "sgd": jl.sgd(1e-2, momentum=0.9)}[name]
    params = {"w": like({"w": jnp.ones((64, 32))}, 0)["w"], "b": jnp.ones(32)}
    split = {"w": P(None, "model"), "b": P("model")}
    rule = jl.zero(inner, axis_name="data", min_bytes=0)
    own = {"w": jax.ShapeDtypeStruct((64, 16), jnp.float32), "b": jax.ShapeDtypeStruct((16,), jnp.float32)}
    specs = jl.mapped_state_specs(rule, own, {"data": 4}, specs=split)
    init = jax.jit(jax.shard_map(rule.init, mesh=mesh, in_specs=(split,), out_specs=specs, check_vma=typed))
    step = jax.jit(
        jax.shard_map(
            rule.update, mesh=mesh, in_specs=(split, specs, split), out_specs=(split, specs), check_vma=typed
        )
    )
    state, plain = init(params), inner.init(params)
    for seed in range(3):
        grads = like(params, seed)
        updates, state = jax.block_until_ready(step(grads, state, params))
        state = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), state)  # nothing hides
        want, plain = jax.jit(inner.update)(grads, plain, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, want)
    leaves = [x for x in jax.tree.leaves(state) if x.shape == (64, 32)]
    assert leaves
    assert all(x.addressable_shards[0].data.size == 64 * 32 // 8 for x in leaves)


def test_means_over_devices_are_taken_in_float32():
    """Of eight bfloat16 gradients, where a bfloat16 sum would lose the small ones."""
    rule = jl.zero(jl.gradient_descent(1.0), axis_name="i", min_bytes=0)
    grads = jnp.ones((8, 64, 64), jnp.bfloat16).at[0].set(256.0)
    updates, _ = jax.pmap(lambda g: rule.update(g, rule.init(g)), axis_name="i")(grads)
    np.testing.assert_array_equal(np.asarray(updates[0], np.float32), -np.float32(jnp.bfloat16(263 / 8)))


def test_weights_do_not_overflow_float16():
    rule = jl.zero(jl.gradient_descent(1.0), axis_name="i")
    grads = jnp.full((8, 16), 20000.0, jnp.float16)
    weights = jnp.asarray([7.0, 1, 0, 0, 0, 0, 0, 0])
    updates, _ = jax.pmap(lambda g, w: rule.update(g, rule.init(g), weight=w), axis_name="i")(grads, weights)
    np.testing.assert_array_equal(np.asarray(updates, np.float32), -20000.0)


def test_weights_reach_accumulators_inside():
    """Two micro-batches: weighed by all devices' tokens, not by their number."""
    rule = jl.zero(jl.accumulate(jl.gradient_descent(1.0), 2), axis_name="i")

    def run(grads, weights):
        state = rule.init(grads[0])
        _, state = rule.update(grads[0], state, weight=weights[0])
        return rule.update(grads[1], state, weight=weights[1])[0]

    grads = jnp.stack([jnp.stack([jnp.full(16, 1.0), jnp.full(16, 5.0)])] * 8)
    weights = jnp.stack([jnp.asarray([3.0, 1.0])] * 8)
    updates = jax.pmap(run, axis_name="i")(grads, weights)
    np.testing.assert_allclose(np.asarray(updates), -2.0, rtol=1e-6)


def test_a_guard_around_zero_is_refused_where_devices_would_disagree():
    params = jl.replicate(jnp.ones((8, 4)))
    with pytest.raises(ValueError, match=r"each device would decide by its own .* Write zero.skip_nonfinite"):
        jax.pmap(jl.skip_nonfinite(jl.zero(jl.adam(1e-3), axis_name="i")).init, axis_name="i")(params)
    rule = jl.skip_nonfinite(jl.zero(jl.adam(1e-3), axis_name="i"), axis_name="i")
    grads = params.at[0, 0, 0].set(jnp.nan)
    updates, state = jax.pmap(lambda g, p: rule.update(g, rule.init(p), p), axis_name="i")(grads, params)
    assert np.asarray(state.skipped).tolist() == [1] * 8
    assert np.all(np.asarray(updates) == 0)


def test_leaves_outside_zero_compile_once_after_init_state():
    mesh = make_mesh((4, 2), ("data", "model"))
    params = jax.device_put({"w": jnp.ones((64, 32))}, NamedSharding(mesh, P(None, "model")))
    rule = jl.skip_nonfinite(
        optax.chain(
            optax.scale_by_schedule(lambda count: 1.0), jl.zero(jl.adam(1e-3), mesh, "data", min_bytes=0)
        )
    )
    state, step = jl.init_state(rule, params), jax.jit(rule.update, donate_argnums=1)
    shardings = jl.state_shardings(rule, params)
    jax.tree.map(lambda x, s: x.sharding == s or pytest.fail(f"{x.sharding} {s}"), state, shardings)
    for _ in range(2):
        _, state = jax.block_until_ready(step(params, state, params))
    assert step._cache_size() == 1


def test_errors(mesh8):
    adam = jl.adam(1e-3)
    for axis in ((), ("data", "data"), ["data"]):
        with pytest.raises(ValueError, match="zero: axis is out of range"):
            inspect.unwrap(jl.zero)(adam, mesh8, axis)
    with pytest.raises(
        ValueError, match=r"zero: layers matches no parameter, got 'blok\*'; the nearest are 'block'"
    ):
        jl.zero(adam, mesh8, "data", layers="blok*").init({"block": jnp.ones((8, 8))})
    params = {"w": jnp.ones((64, 8)), "b": jnp.ones(8)}
    rule = jl.zero(adam, mesh8, "data", min_bytes=0)
    state = rule.init(params)
    with pytest.raises(ValueError, match="gradients do not have the structure of the params: missing 'b'"):
        rule.update({"w": params["w"]}, state, params)
    with pytest.raises(
        ValueError, match=r"one of the gradients has shape .63, 8. at w; in init it had .64, 8."
    ):
        rule.update({"w": params["w"][1:], "b": params["b"]}, state, params)
    with pytest.raises(TypeError, match="zero: the state is not one of zero, got a tuple of 2"):
        rule.update(params, adam.init(params), params)
    for function in (jl.skip_nonfinite, lambda r: jl.state_specs(r, params)):
        with pytest.raises(TypeError, match="rule is not a rule, got 3"):
            function(3)
    mapped = jl.zero(adam, axis_name="data")
    with pytest.raises(ValueError, match=r"axis_name is not a mapped axis here, got 'data'.*given are 'x'"):
        jl.mapped_state_specs(mapped, params, {"x": 8})


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")], ids=str)
@pytest.mark.parametrize("name", ["adamw", "sgd", "inject", "ours"])
def test_gradients_of_another_dtype_than_the_parameters(name, dtypes):
    """A rule may widen its state after the first step; three steps, so that it has."""
    make = {
        "adamw": lambda: optax.adamw(1e-2),
        "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
        "inject": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2),
        "ours": lambda: jl.skip_nonfinite(jl.adamw(1e-2)),
    }[name]
    params = {"w": jnp.ones((24, 16), dtypes[0]), "b": jnp.ones(3, dtypes[0]), "s": jnp.ones((), dtypes[0])}
    grads = jax.tree.map(lambda p: jnp.full(p.shape, 0.5, dtypes[1]), params)
    rule, plain = jl.zero(make(), axis_name="i"), make()
    with jax.numpy_dtype_promotion("standard"):
        copies, many = jl.replicate(params), jl.replicate(grads)
        state, step = jax.pmap(rule.init, axis_name="i")(copies), jax.pmap(rule.update, axis_name="i")
        want_state = plain.init(params)
        for _ in range(3):
            updates, state = step(many, state, copies)
            want, want_state = jax.jit(plain.update)(grads, want_state, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=1e-2
        ),
        jl.unreplicate(updates),
        want,
    )


def test_spreading_over_a_share_of_length_one_is_not_refused():
    spread = optax.stateless(
        lambda u, _: jax.tree.map(lambda a: jnp.broadcast_to(jnp.ones((1,) * a.ndim), a.shape) * a, u)
    )
    rule = jl.zero(spread, axis_name="i")
    grads = jl.replicate({"b": jnp.arange(3.0), "w": jnp.ones((16, 8))})
    got, _ = jax.pmap(lambda g: rule.update(g, rule.init(g)), axis_name="i")(grads)
    np.testing.assert_array_equal(jl.unreplicate(got)["b"], np.arange(3.0))


@pytest.mark.parametrize("kind", ["deferred", "outside"])
def test_tensor_parallel_leaves_outside_zero_inside_shard_map(kind):
    mesh = make_mesh((4, 2), ("data", "model"))
    inner = jl.zero(jl.adamw(1e-2), axis_name="data", min_bytes=0)
    rule = (
        jl.accumulate(inner, 1, "deferred", axis_name="data", nonfinite="keep")
        if kind == "deferred"
        else optax.chain(optax.trace(0.9), inner)
    )
    plain = jl.adamw(1e-2) if kind == "deferred" else optax.chain(optax.trace(0.9), jl.adamw(1e-2))
    params, split = {"w": like({"w": jnp.ones((64, 32))}, 0)["w"]}, {"w": P(None, "model")}
    own = {"w": jax.ShapeDtypeStruct((64, 16), jnp.float32)}
    specs = jl.mapped_state_specs(rule, own, {"data": 4}, specs=split)
    init = jax.jit(jax.shard_map(rule.init, mesh=mesh, in_specs=(split,), out_specs=specs))
    step = jax.jit(
        jax.shard_map(rule.update, mesh=mesh, in_specs=(split, specs, split), out_specs=(split, specs))
    )
    state, want_state = init(params), plain.init(params)
    for seed in range(3):
        grads = like(params, seed)
        updates, state = jax.block_until_ready(step(grads, state, params))
        state = jax.tree.map(lambda x: jax.device_put(np.asarray(x), x.sharding), state)
        want, want_state = jax.jit(plain.update)(grads, want_state, params)
        np.testing.assert_allclose(updates["w"], want["w"], rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("difference", [1e-9, 1e-4])
def test_leaves_that_differ_in_a_constant_begin_as_they_should(mesh8, difference):
    def init(params):
        return {
            k: x + np.float32(1.2345678 + n * difference * 1000) for n, (k, x) in enumerate(params.items())
        }

    params = {f"w{n}": jnp.zeros((64, 8)) for n in range(8)}
    rule = jl.zero(
        optax.GradientTransformation(init, lambda g, s, p=None: (g, s)), mesh8, "data", min_bytes=0
    )
    with np.printoptions(precision=3):
        state = rule.init(params)
    for got, want in zip(jax.tree.leaves(state), jax.tree.leaves(init(params)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_zero_without_arrays_still_says_where_what_is_beside_it_belongs(mesh8):
    params = {"w": jnp.ones((8, 16))}
    rule = optax.chain(jl.zero(jl.sgd(0.1), mesh8, "data"), jl.scale_by_learning_rate(lambda count: 0.1))
    (count,) = jax.tree.leaves(jl.state_shardings(rule, params))
    assert count.mesh == mesh8


def test_init_while_an_explicit_mesh_is_in_use():
    """Of leaves that are padded or flattened too."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    params = {"odd": jnp.ones((7, 5)), "even": jnp.ones((8, 4))}
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    rule = jl.zero(jl.adam(0.1), mesh, "data", min_bytes=0)
    with jax.set_mesh(mesh):
        state = rule.init(params)
        updates, _ = jax.jit(rule.update)(params, state, params)
    expected, _ = jl.adam(0.1).update(params, jl.adam(0.1).init(params), params)
    for name in params:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-6)
