"""Storage: any rule, unbiased, at any scale of the gradient, the same on every mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._encoded import Encoded, is_encoded

from ..catalog import RULES, in_turn, some_of

P = PartitionSpec


def _int8(rule, **more):
    return jl.stored(rule, mu=jl.int8(), nu=jl.int8(), **more)


def _normal(seed, shape=(32, 256)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _encoded(state):
    return [x for x in jax.tree.leaves(state, is_leaf=is_encoded) if is_encoded(x)]


# --- any rule -----------------------------------------------------------------------------------------


def _matrices(tree):
    return jax.tree.map(lambda p: p.ndim >= 2, tree)


_ANY = {
    "optax.adamw": (lambda: optax.adamw(1e-2), ("mu", "nu"), 2),
    "optax.amsgrad": (lambda: optax.amsgrad(1e-2), ("mu", "nu", "nu_max"), 3),
    "optax.lion": (lambda: optax.lion(1e-3), ("mu",), 1),
    "optax.sgd": (lambda: optax.sgd(1e-2, momentum=0.9), ("trace",), 1),
    "optax.adagrad": (lambda: optax.adagrad(1e-2), ("sum_of_squares",), 1),
    "optax.rmsprop": (lambda: optax.rmsprop(1e-2), ("nu",), 1),
    "optax.adan": (lambda: optax.adan(1e-2), ("m", "v", "n"), 3),
    "optax.yogi": (lambda: optax.yogi(1e-2), ("mu", "nu"), 2),
    "optax.adafactor": (lambda: optax.adafactor(1e-2, min_dim_size_to_factor=8192), ("v",), 1),
    "optax.contrib.muon": (lambda: optax.contrib.muon(1e-2), ("mu",), 1),
    "optax.contrib.ademamix": (lambda: optax.contrib.ademamix(1e-2), ("m1", "m2", "nu"), 3),
    "chain": (lambda: optax.chain(jl.clip_by_global_norm(1.0), optax.adam(1e-2)), ("mu", "nu"), 2),
    "partition": (
        lambda: jl.partition({"w": jl.adam(1e-2), "*": jl.sgd(1e-2, momentum=0.9)}),
        ("mu", "nu", "trace"),
        2,
    ),
    "masked": (lambda: optax.masked(optax.adam(1e-2), _matrices), ("mu", "nu"), 2),
    "inject": (lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-2), ("mu", "nu"), 2),
    "MultiSteps": (lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(), ("mu", "nu"), 2),
    "skip": (lambda: jl.skip_nonfinite(jl.adamw(1e-2)), ("mu", "nu"), 2),
}
_ALIKE = ("optax.lion", "optax.sgd", "optax.adagrad", "optax.yogi", "optax.rmsprop", "chain", "skip")


@pytest.mark.parametrize("name", some_of(_ANY, *_ALIKE))
def test_any_rule_by_the_names_of_its_fields(name):
    make, fields, count = _ANY[name]
    params = {"w": _normal(0), "b": jnp.ones(24)}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        plain, rule = make(), jl.stored(make(), **{field: jl.int8() for field in fields})
        state, want_state = rule.init(params), plain.init(params)
        assert len(_encoded(state)) == count
        step, plain_step = jax.jit(rule.update, donate_argnums=1), jax.jit(plain.update)
        for seed in range(6):
            grads = {"w": _normal(10 + seed) + 0.5, "b": jnp.full(24, 0.1)}
            before = jax.tree.structure(state), jax.tree.map(lambda x: (x.shape, x.dtype), state)
            updates, state = step(grads, state, params)
            want, want_state = plain_step(grads, want_state, params)
            assert before == (jax.tree.structure(state), jax.tree.map(lambda x: (x.shape, x.dtype), state))
        assert step._cache_size() <= plain_step._cache_size()
        off = np.linalg.norm(updates["w"] - want["w"]) / max(np.linalg.norm(want["w"]), 1e-30)
        assert off < (0.3 if "lion" in name else 0.12), off  # lion's signs flip near 0
        assert updates["w"].dtype == want["w"].dtype


def test_signs_are_found_from_the_rule():
    """adan's v is a difference, adafactor's v a mean square."""
    params = {"w": _normal(0)}
    with jax.numpy_dtype_promotion("standard"):
        adan = jl.stored(optax.adan(1e-2), m=jl.int8(), v=jl.int8(), n=jl.int8()).init(params)
        factored = jl.stored(optax.adafactor(1e-2, min_dim_size_to_factor=8192), v=jl.int8()).init(params)
    assert [x.codes.dtype.name for x in _encoded(adan)] == ["int8", "int8", "uint8"]
    assert [x.codes.dtype.name for x in _encoded(factored)] == ["uint8"]


def test_a_sum_of_gradients_may_be_negative():
    def update(updates, state, params=None):
        del params
        total = jnp.sum(updates["w"])
        return updates, optax.TraceState({"w": 0.9 * state.trace["w"] + 2 * total * jnp.square(updates["w"])})

    rule = optax.GradientTransformation(lambda p: optax.TraceState(jax.tree.map(jnp.zeros_like, p)), update)
    stored = jl.stored(rule, trace=jl.int8())
    grads = {"w": -jnp.ones((32, 256))}
    state = stored.init(grads)
    assert _encoded(state)[0].format.signed is True
    _, state = stored.update(grads, state)
    kept = _encoded(state)[0]
    np.testing.assert_allclose(kept.format.decode(kept), -2 * 8192.0, rtol=1e-6)


def test_fields_of_both_signs_are_seen_as_such():
    def clipped(learning_rate, c):
        return optax.chain(optax.clip(c), optax.sgd(learning_rate, momentum=0.9))

    params = {"w": _normal(0)}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for rule, fields in (
            (optax.inject_hyperparams(clipped)(learning_rate=1e-2, c=1.0), ("trace",)),  # max(x, -c)
            (optax.contrib.prodigy(1.0), ("params0",)),  # begins as the parameters
            (optax.contrib.adopt(1e-2), ("mu",)),
        ):
            state = jl.stored(rule, **{field: jl.int8() for field in fields}).init(params)
            assert [x.format.signed for x in _encoded(state)] == [True] * len(fields), fields


def test_stored_inside_stored_is_refused():
    rule = jl.stored(jl.stored(jl.adam(1e-3), nu=jl.int8()), mu=jl.int8())
    with pytest.raises(ValueError, match="is inside another stored"):
        rule.init({"w": _normal(0)})
    with pytest.raises(TypeError, match="seed is out of range, got -1"):
        jl.stored(jl.adam(1e-3), seed=-1)


def test_signs_that_nothing_can_tell_are_said_to_be_assumed():
    class State(NamedTuple):
        v: dict
        nu: dict

    def update(updates, state, params=None, *, value):
        del params
        v = jax.tree.map(lambda v, g: 0.9 * v + value * jnp.square(g), state.v, updates)
        return updates, State(v, state.nu)

    def zeros(params):
        return jax.tree.map(jnp.zeros_like, params)

    needy = optax.GradientTransformationExtraArgs(lambda params: State(zeros(params), zeros(params)), update)
    params = {"w": jnp.ones((32, 256))}
    rule = jl.stored(needy, v=jl.int8(), nu=jl.int8())
    v, nu = _encoded(rule.init(params))
    assert (v.format.signed, nu.format.signed) == (True, False)  # of `nu` the name tells
    table = str(jl.explain(rule, params))
    assert table.count("signs unknown, as update takes more arguments") == 1
    (v, _) = _encoded(jl.stored(needy, v=jl.int8(signed=False), nu=jl.int8()).init(params))
    assert v.format.signed is False


def test_globs_and_what_stays_float32():
    shapes = {
        "embed": (64, 128),
        "block": {"kernel": (64, 128), "norm": (8192,)},
        "head": (64, 128),
        "bias": (100,),
    }
    shapes |= {"narrow": (4096, 8)}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda s: isinstance(s, tuple))
    state = _int8(jl.adam(1e-2)).init(params).inner[0]
    kind = lambda x: "int8" if isinstance(x, Encoded) else str(x.dtype)  # noqa: E731
    nu = jax.tree.map(kind, state.nu, is_leaf=is_encoded)
    assert nu == {
        "embed": "float32",
        "block": {"kernel": "int8", "norm": "float32"},
        "head": "int8",
        "bias": "float32",
        "narrow": "float32",
    }
    assert kind(state.mu["embed"]) == "int8"
    rule = jl.stored(jl.adam(1e-2), nu={"*embed*|head": jl.bfloat16(), "*": jl.int8()})
    nu = rule.init(params).inner[0].nu
    assert (nu["embed"].format.name, nu["head"].format.name, nu["block"]["kernel"].format.name) == (
        "bfloat16",
        "bfloat16",
        "int8",
    )


def test_low_precision_state_is_widened():
    """optax keeps nu in the parameters' dtype, where it does not decay."""
    params = {"w": jnp.ones((64, 128), jnp.bfloat16), "b": jnp.ones(3, jnp.bfloat16)}
    with jax.numpy_dtype_promotion("standard"):
        rule = _int8(optax.adam(1e-2), params=jl.rounded())
        state = rule.init(params)
        _, state = jax.jit(rule.update)(params, state, params)
    assert state.inner[0].nu["b"].dtype == jnp.float32
    assert state.inner[0].nu["w"].dtype == "float32"


def test_errors(mesh8):
    params = {"w": _normal(0)}
    with pytest.raises(ValueError, match=r"stored: the state has no field 'mv'; its fields are 'mu', 'nu'"):
        jl.stored(jl.adam(1e-2), mv=jl.int8()).init(params)
    with pytest.raises(
        ValueError, match=r"stored: a glob of nu matches no parameter with that field, got 'v'"
    ):
        jl.stored(jl.adam(1e-2), nu={"v": jl.int8(), "*": jl.int8()}).init(params)
    with pytest.raises(ValueError, match=r"stored: nu has no format at w. End its globs with"):
        jl.stored(jl.adam(1e-2), nu={"v*": jl.int8()}).init({**params, "v": params["w"]})
    with pytest.raises(TypeError, match=r"stored: nu has no format, got 'int8'; jl.float32.., "):
        jl.stored.__wrapped__(jl.adam(1e-2), nu="int8") if hasattr(jl.stored, "__wrapped__") else jl.stored(
            jl.adam(1e-2), nu="int8"
        )
    with pytest.raises(ValueError, match=r"zero: the rule is inside stored, .* Write zero.stored.rule"):
        _int8(jl.zero(jl.adam(1e-2), mesh8, "data")).init(params)


def test_errors_of_parameters_and_of_what_is_inside():
    params = {"w": _normal(0).astype(jnp.bfloat16), "b": jnp.ones(3)}
    rule = jl.stored(jl.sgd(1e-2, momentum=0.9), params=jl.split())
    state = rule.init(params)
    with pytest.raises(ValueError, match=r"stored: the gradient is missing at b. Pass all gradients"):
        rule.update({**params, "b": None}, state, params)
    with pytest.raises(
        ValueError, match=r"stored: gradients do not have the structure of the params: missing 'w'"
    ):
        rule.update({"b": params["b"]}, state, params)
    with pytest.raises(ValueError, match=r"stored: params and state have different trees. Pass the state"):
        rule.update({"b": params["b"]}, state, {"b": params["b"]})
    with pytest.raises(ValueError, match=r"offload: the rule is inside stored. Write offload.stored.rule"):
        _int8(jl.offload(jl.adam(1e-2))).init({"w": _normal(0)})
    with pytest.raises(TypeError, match="stored: nu has a key that is not a glob, got 3; a string"):
        jl.stored(jl.adam(1e-2), nu={3: jl.int8()})
    with pytest.raises(
        TypeError, match=r"stored: params is not a format of parameters, got a dict; jl.rounded"
    ):
        jl.stored(jl.adam(1e-2), params)
    with pytest.raises(ValueError, match=r"int8.encode: a scalar has no last axis"):
        jl.int8().encode(jnp.ones(()))


def test_a_state_may_hold_python_numbers():
    plain = jl.sgd(1e-2, momentum=0.9)
    rule = optax.GradientTransformation(
        lambda p: (plain.init(p), 3), lambda g, s, p=None: (g, (plain.update(g, s[0], p)[1], s[1] + 1))
    )
    stored, params = jl.stored(rule, trace=jl.int8()), {"w": _normal(0)}
    _, state = stored.update(params, stored.init(params), params)
    assert int(state.inner[1]) == 4
    assert state.inner[0][0].trace["w"].codes.dtype == jnp.int8


def test_what_is_negative_in_a_field_that_must_not_be_shows():
    rule = jl.stored(jl.sgd(1e-2, momentum=0.9), trace=jl.int8(signed=False))
    params = {"w": _normal(0)}
    _, state = rule.update(params, rule.init(params), params)
    trace = state.inner[0].trace["w"]
    assert np.all(np.isnan(trace.format.decode(trace)))


def test_a_hyperparameter_may_be_traced():
    def moved(rate):
        rule = _int8(jl.adam(rate, b2=jnp.float32(0.999) * rate / rate))
        updates, state = rule.update(params, rule.init(params), params)
        assert state.inner[0].nu["w"].codes.dtype == jnp.uint8
        return jnp.sum(jnp.abs(updates["w"]))

    params = {"w": _normal(0)}
    size = params["w"].size
    np.testing.assert_allclose(jax.jit(jax.grad(moved))(jnp.float32(0.1)), size, rtol=1e-3)


# --- numbers ------------------------------------------------------------------------------------------


def _displacement(rule, scale, steps, shape=(16, 256)):
    """How far a rule moves under gradients with a drift and noise, all of it times `scale`."""
    params = {"w": jnp.zeros(shape)}
    mean = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)

    def step(carry, key):
        moved, state = carry
        grads = {"w": scale * (mean + jax.random.normal(key, shape))}
        updates, state = rule.update(grads, state, params)
        return (moved + updates["w"], state), None

    keys = jax.random.split(jax.random.key(0), steps)
    (moved, _), _ = jax.jit(lambda s: jax.lax.scan(step, (params["w"], s), keys))(rule.init(params))
    return np.asarray(moved)


@pytest.mark.parametrize("b2", [pytest.param(0.95, marks=pytest.mark.full), 0.999])
def test_the_scale_of_the_gradient_does_not_matter(b2):
    found = {}
    for scale in (1e-8, 1e-4, 1.0, 1e4):
        make = lambda: jl.adam(1e-2, b2=b2, eps=1e-8 * scale)  # noqa: B023, E731
        want = _displacement(make(), jnp.float32(scale), 200)
        got = found[scale] = _displacement(_int8(make()), jnp.float32(scale), 200)
        assert abs(np.linalg.norm(got) / np.linalg.norm(want) - 1) < 0.01, scale
        # coordinate by coordinate: what rounding at random leaves after 200 steps
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.02, scale
        np.testing.assert_allclose(np.linalg.norm(got - found[1e-8]) / np.linalg.norm(got), 0.0, atol=0.02)


def _second_moment(format, b2, kind, steps=2000, shape=(64, 128)):
    """Median over elements of what is stored by what is true."""
    rule = jl.stored(jl.scale_by_adam(b2=b2), nu=format)
    params = {"w": jnp.zeros(shape)}
    plain = jl.scale_by_adam(b2=b2)

    def gradient(key, t):
        g = jax.random.normal(key, shape)
        if kind == "sparse":
            g = jnp.where(jax.random.uniform(jax.random.fold_in(key, 1), (shape[0], 1)) < 0.02, g, 0.0)
        return g * 10.0 ** (-t / steps) if kind == "decaying" else g

    def step(carry, inputs):
        state, want = carry
        grads = {"w": gradient(*inputs)}
        return (rule.update(grads, state, params)[1], plain.update(grads, want, params)[1]), None

    inputs = (jax.random.split(jax.random.key(0), steps), jnp.arange(steps, dtype=jnp.float32))
    start = (rule.init(params), plain.init(params))
    (state, want), _ = jax.jit(lambda c: jax.lax.scan(step, c, inputs))(start)
    node = state.inner.nu["w"]
    got, true = np.asarray(node.format.decode(node)), np.asarray(want.nu["w"])
    seen = true > 0
    return float(np.median(got[seen] / true[seen]))


@in_turn("b2", [0.9, 0.95, 0.99, 0.999, 0.9999], "kind", ["dense", "sparse", "decaying"])
def test_the_second_moment_is_not_biased(b2, kind):
    assert abs(_second_moment(jl.int8(), b2, kind) - 1) < 0.01


def test_rounding_to_nearest_would_be_biased():
    """What the test above must be able to see."""
    assert _second_moment(jl.bfloat16(stochastic=False), 0.999, "dense") > 1.1
    assert abs(_second_moment(jl.bfloat16(), 0.999, "dense") - 1) < 0.01


def test_columns_of_different_scales_inside_a_block():
    scales = jnp.exp(1.5 * _normal(5, (256,)))[None]
    rule, plain, params = _int8(jl.adam(1.0)), jl.adam(1.0), {"w": jnp.zeros((32, 256))}
    state, want_state = rule.init(params), plain.init(params)
    step, plain_step = jax.jit(rule.update), jax.jit(plain.update)
    for seed in range(100):
        grads = {"w": _normal(seed) * scales}
        updates, state = step(grads, state, params)
        want, want_state = plain_step(grads, want_state, params)
        assert float(jnp.max(jnp.abs(updates["w"]))) <= 10 * float(jnp.max(jnp.abs(want["w"])))


def test_zero_gradients_for_5000_steps():
    rule, params = _int8(jl.adam(1e-2)), {"w": jnp.zeros((32, 128))}
    _, state = rule.update({"w": _normal(0, (32, 128))}, rule.init(params), params)

    def step(state, _):
        updates, state = rule.update(params, state, params)
        return state, jnp.max(jnp.abs(updates["w"]))

    state, sizes = jax.jit(lambda s: jax.lax.scan(step, s, length=5000))(state)
    sizes = np.asarray(sizes)
    assert np.isfinite(sizes).all()
    assert sizes.max() < 0.02
    assert sizes[-1] < 1e-6
    nu = state.inner[0].nu["w"]
    got = np.asarray(nu.format.decode(nu))
    np.testing.assert_allclose(
        np.median(got / np.asarray(_normal(0, (32, 128))) ** 2), 0.001 * 0.999**5000, rtol=0.2
    )


def test_persistent_bytes():
    shapes = {
        "a": jax.ShapeDtypeStruct((1024, 4096), jnp.bfloat16),
        "b": jax.ShapeDtypeStruct((12, 768, 3072), jnp.bfloat16),
    }
    count = sum(x.size for x in shapes.values())

    def per_parameter(rule):
        state = jax.eval_shape(rule.init, shapes)
        return 2 + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / count

    assert per_parameter(_int8(jl.adamw(1e-3), params=jl.split())) <= 5.07
    assert per_parameter(_int8(jl.adamw(1e-3), params=jl.rounded())) <= 4.07
    assert per_parameter(jl.stored(jl.lion(1e-3), mu=jl.int8(), params=jl.rounded())) <= 3.04
    shapes = {"a": shapes["a"]}  # optax's muon gives others to Adam
    count = shapes["a"].size
    with jax.numpy_dtype_promotion("standard"):
        assert per_parameter(jl.stored(optax.contrib.muon(1e-3), mu=jl.int8(), params=jl.rounded())) <= 3.04


# --- the same on every mesh ---------------------------------------------------------------------------


_STEPS = 200


def _run(rule, params, steps, state=None, first=0):
    """Steps with gradients that do not depend on the mesh; the parameters are added outside of the step."""
    step = jax.jit(rule.update, donate_argnums=1)
    place = jax.tree.map(lambda p: p.sharding, params)
    add = jax.jit(lambda p, u: jax.tree.map(lambda a, b: (a.astype(jnp.float32) + b).astype(a.dtype), p, u))
    state = rule.init(params) if state is None else state
    for seed in range(first, first + steps):
        grads = {
            k: jnp.asarray(np.random.default_rng((seed, ord(k))).normal(size=p.shape), jnp.bfloat16)
            for k, p in params.items()
        }
        updates, state = jax.block_until_ready(
            step(jax.tree.map(jax.device_put, grads, place), state, params)
        )
        params = jax.block_until_ready(add(params, updates))
    return params, state


def _mesh_params(mesh):
    values = {"w": _normal(0, (64, 256)), "v": _normal(1, (4, 64, 384))}
    return {k: jax.device_put(x.astype(jnp.bfloat16), NamedSharding(mesh, P())) for k, x in values.items()}


def _on(count, kind=AxisType.Auto):
    mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count], axis_types=(kind,))
    return mesh, jl.zero(_int8(jl.adamw(1e-2), params=jl.split()), mesh, "data", min_bytes=0)


def _bits(tree):
    return jax.tree.map(lambda x: np.asarray(x).astype(np.float32), tree)


def _equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, _bits(a), _bits(b))


@pytest.fixture(scope="module")
def on_one():
    mesh, rule = _on(1)
    params, state = _run(rule, _mesh_params(mesh), _STEPS)
    return params, state.inner


@pytest.mark.parametrize("count", [8, *(pytest.param(n, marks=pytest.mark.full) for n in (2, 4))])
def test_the_same_bits_on_every_mesh(count, on_one):
    mesh, rule = _on(count)
    params, state = _run(rule, _mesh_params(mesh), _STEPS)
    _equal(params, on_one[0])
    _equal(state.inner, on_one[1])
    for x in _encoded(state):
        assert x.codes.addressable_shards[0].data.size == x.codes.size // count
        assert x.scales.addressable_shards[0].data.size == x.scales.size // count


def test_the_same_bits_after_a_checkpoint_on_8_restored_on_4(tmp_path, on_one):
    mesh, rule = _on(8)
    params, state = _run(rule, _mesh_params(mesh), _STEPS // 2)
    jl.save(tmp_path / "half", (params, state))
    mesh, rule = _on(4)
    like = _mesh_params(mesh)
    params, state = jl.restore(tmp_path / "half", (like, rule.init(like)))
    params, state = _run(rule, params, _STEPS // 2, state, _STEPS // 2)
    _equal(params, on_one[0])
    _equal(state.inner, on_one[1])


def test_the_same_bits_among_explicit_axes(on_one):
    mesh, rule = _on(8, AxisType.Explicit)
    params, state = _run(rule, _mesh_params(mesh), _STEPS)
    _equal(params, on_one[0])
    _equal(state.inner, on_one[1])


def test_codes_are_the_same_where_a_mesh_divides_blocks(mesh8):
    rule, params = _int8(jl.adamw(1e-2)), {"w": _normal(0, (64, 512))}
    step = jax.jit(rule.update)
    want, want_state = step({"w": _normal(1, (64, 512))}, rule.init(params), params)
    params, grads = jax.device_put(
        (params, {"w": _normal(1, (64, 512))}), NamedSharding(mesh8, P(None, "data"))
    )
    got, state = jax.block_until_ready(step(grads, rule.init(params), params))
    _equal(state, want_state)
    # what decodes and what comes after it are compiled apart there: products are rounded differently
    np.testing.assert_allclose(got["w"], want["w"], rtol=3e-7)


@pytest.mark.parametrize("columns", [640, 1024], ids=["divided blocks", "whole blocks"])
def test_parameters_divided_among_explicit_axes(columns):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    rule = _int8(jl.adamw(1e-2), params=jl.split())
    whole = {"w": _normal(0, (32, columns)).astype(jnp.bfloat16)}
    grads = {"w": _normal(1, (32, columns)).astype(jnp.bfloat16)}
    want, want_state = jax.jit(rule.update)(grads, rule.init(whole), whole)
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, P("model", "data"))
        params, grads = jax.device_put((whole, grads), where)
        for init in (rule.init, jax.jit(rule.init)):
            updates, state = jax.jit(rule.update)(grads, init(params), params)
            mu = _encoded(state)[0]
            assert mu.codes.sharding.spec == updates["w"].sharding.spec == P("model", "data")
            last = None if columns == 640 else "data"
            parts = [mu.scales.sharding.spec[mu.order.index(axis)] for axis in (0, 1)]
            assert parts == ["model", last]
            assert jl.int8().spec((32, columns), P("model", "data"), mesh)[1] == mu.scales.sharding.spec
            for a, b in zip(_encoded(state), _encoded(want_state), strict=True):
                off = np.abs(np.asarray(a.codes).astype(int) - np.asarray(b.codes).astype(int))
                assert np.max(off) <= 1
                assert np.mean(off) < 1e-3
            np.testing.assert_allclose(updates["w"], want["w"], rtol=1e-3, atol=1e-5)


@pytest.mark.compat
@pytest.mark.parametrize(
    "way", [*(pytest.param(way, marks=pytest.mark.full) for way in ("pmap", "shard_map")), "shard_map typed"]
)
def test_the_same_bits_in_mapped_axes(way, mesh8):
    steps, inner = 20, lambda: _int8(jl.adamw(1e-2), params=jl.split())
    values = {k: jnp.asarray(np.asarray(x)) for k, x in _mesh_params(mesh8).items()}
    want, want_state = _run(inner(), values, steps)
    rule = jl.zero(inner(), axis_name="data")
    params = jl.replicate(values) if way == "pmap" else values
    if way == "pmap":
        state = jax.pmap(rule.init, axis_name="data")(params)
        step = jax.pmap(rule.update, axis_name="data")
    else:
        options = {"mesh": mesh8, "check_vma": way.endswith("typed")}
        specs = jl.mapped_state_specs(rule, values, {"data": 8})
        state = jax.jit(jax.shard_map(rule.init, in_specs=P(), out_specs=specs, **options))(params)
        step = jax.jit(
            jax.shard_map(rule.update, in_specs=(P(), specs, P()), out_specs=(P(), specs), **options)
        )
    mapped = jax.pmap if way == "pmap" else jax.jit
    add = mapped(lambda p, u: jax.tree.map(lambda a, b: (a.astype(jnp.float32) + b).astype(a.dtype), p, u))
    for seed in range(steps):
        grads = {
            k: jnp.asarray(np.random.default_rng((seed, ord(k))).normal(size=p.shape), jnp.bfloat16)
            for k, p in values.items()
        }
        grads = jl.replicate(grads) if way == "pmap" else grads
        updates, state = jax.block_until_ready(step(grads, state, params))
        params = jax.block_until_ready(add(params, updates))
    if way == "pmap":
        params, state = jl.unreplicate(params), jl.to_global(state)
    else:
        state = state.inner
    _equal(params, want)
    _equal(state, want_state)


@pytest.mark.parametrize(
    "case", some_of([c for c in RULES if c.name in ("sgd", "lion", "adamw", "adagrad")], "lion", "adagrad")
)
def test_beside_other_wrappers(case, mesh8):
    """accumulate, skip, clip, offload and zero around it."""
    fields = {"sgd": ["trace"], "lion": ["mu"], "adamw": ["mu", "nu"], "adagrad": ["sum_of_squares"]}[
        case.name
    ]
    inner = lambda: jl.stored(case.rule(), **{f: jl.int8() for f in fields})  # noqa: E731
    params = jax.device_put({"w": _normal(0, (64, 256))}, NamedSharding(mesh8, P()))
    wrapped = jl.offload(
        jl.zero(
            jl.accumulate(jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1e6), inner())), 2),
            mesh8,
            "data",
            min_bytes=0,
        ),
        min_bytes=0,
    )
    plain = inner()
    state, want_state = wrapped.init(params), plain.init(params)
    where = jax.tree.map(lambda p: p.sharding, params)
    step = jax.jit(wrapped.update, out_shardings=(where, jl.state_shardings(wrapped, params)))
    for seed in range(4):
        grads = {"w": jnp.round(_normal(seed, (64, 256)) * 8) / 8}  # means of them are exact
        for _ in range(2):
            updates, state = jax.block_until_ready(step(jax.device_put(grads, where), state, params))
        want, want_state = jax.jit(plain.update)(grads, want_state, params)
        np.testing.assert_allclose(np.asarray(updates["w"]), np.asarray(want["w"]), rtol=1e-5, atol=1e-8)
    kinds = {x.codes.sharding.memory_kind for x in _encoded(state)}
    assert kinds == {"pinned_host"}
