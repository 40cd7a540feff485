"""Placement: sharded equals unsharded, each state leaf lives once, a step compiles once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._compat import make_mesh

from ..catalog import KINDS, RULES, every_kind, in_turn, mixed_params

_STEPS = 50
P = PartitionSpec


def _loss(params, x):
    """Depends on every leaf, and averages over the rows of x.

    No gradient comes near 0, where adaptive rules turn rounding into steps of full size.
    """
    h = jax.nn.softplus(x @ params["dense"]["kernel"])
    terms = [jnp.mean(h), jnp.mean(x[:, :8] @ params["layers"][0][1])]
    terms += [jnp.sum(jnp.exp(0.1 * p)) for p in (params["odd"], params["scale"], params["dense"]["bias"])]
    return sum(terms) + jnp.sum(jnp.exp(0.1 * params["layers"][0])) + jnp.sum(params["empty"])


def _data():
    return jnp.asarray(np.random.default_rng(7).uniform(0.5, 1.5, size=(16, 16)), jnp.float32)


_SETTINGS = {"rprop": {"max_step_size": 0.02}}  # larger ones end where gradients underflow


def _guarded(case):
    rule = case.rule(**_SETTINGS.get(case.name, {}))
    return jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1.0), rule))


def _step(rule, traces):
    def step(params, state, x):
        traces.append(1)
        updates, state = rule.update(jax.grad(_loss)(params, x), state, params)
        return optax.apply_updates(params, updates), state

    return step


def _unsharded(case):
    rule, params = _guarded(case), mixed_params()
    step, state = jax.jit(_step(rule, [])), rule.init(params)
    for _ in range(_STEPS):
        params, state = step(params, state, _data())
    return params


def _close(got, expected, case=None):
    """To a rounding; rates from differences of parameters or of bets that are won enlarge it."""
    off = 1e-3 if case is not None and (case.name == "cocob" or "all leaves" in case.notes) else 1e-6

    def compare(a, b):
        b = np.asarray(b)
        np.testing.assert_allclose(
            np.asarray(a), b, rtol=off, atol=off * max(1.0, float(np.max(np.abs(b), initial=0)))
        )

    jax.tree.map(compare, got, expected)


def _lives_once(state, devices):
    """Bytes over all devices are those of the leaf, padding aside; scalars are replicated."""
    for leaf, cut, shape in zip(
        jax.tree.leaves(state.inner), state.layout.state, state.layout.shapes, strict=True
    ):
        held = sum(s.data.size for s in leaf.addressable_shards)
        if int(np.prod(shape)) <= 1 and cut is None:
            continue
        padded = int(np.prod(cut.padded_shape(shape))) if cut else int(np.prod(shape))
        assert held == padded, shape
        assert padded <= int(np.prod(shape)) + devices


@pytest.mark.compat
@in_turn(
    "case",
    RULES,
    "axis_type",
    [AxisType.Auto, AxisType.Explicit],
    left=tuple(str(case) for case in RULES if str(case) not in KINDS),
)
def test_jit_equals_unsharded(case, axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rule, traces = jl.zero(_guarded(case), mesh, axis="data", min_bytes=0), []
    params = jax.device_put(mixed_params(), NamedSharding(mesh, P()))
    x = jax.device_put(_data(), NamedSharding(mesh, P("data")))
    state = rule.init(params)
    shardings = jl.state_shardings(rule, params)
    jax.tree.map(lambda leaf, s: leaf.sharding == s or pytest.fail(f"{leaf.sharding} {s}"), state, shardings)
    _lives_once(state, 8)
    step = jax.jit(_step(rule, traces), donate_argnums=(0, 1))
    for _ in range(_STEPS):
        old = [leaf for leaf in jax.tree.leaves((params, state)) if leaf.size]
        params, state = jax.block_until_ready(step(params, state, x))
        assert all(leaf.is_deleted() for leaf in old)
    assert len(traces) == 1
    has_key = any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
    if axis_type == AxisType.Auto and not has_key:  # a key's P() and P(None) are two entries
        assert step._cache_size() == 1
    _lives_once(state, 8)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(params))
    _close(params, _unsharded(case), case)


@pytest.mark.compat
@every_kind
def test_pmap_equals_unsharded(case):
    case.skip_if("obj_fn")  # gradients of whole parameters: refused, see test_any_rule
    rule, traces = jl.zero(_guarded(case), axis_name="data"), []
    params = jax.pmap(lambda p, _: p, "data", in_axes=(None, 0))(mixed_params(), jnp.arange(8))
    state = jax.pmap(rule.init, axis_name="data")(params)
    step = jax.pmap(_step(rule, traces), axis_name="data", donate_argnums=(0, 1))
    x = _data().reshape(8, 2, 16)
    for _ in range(_STEPS):
        params, state = jax.block_until_ready(step(params, state, x))
    assert len(traces) == 1
    expected = _unsharded(case)
    for device in (0, 7):
        _close(jax.tree.map(lambda p, d=device: np.asarray(p)[d], params), expected, case)
    for leaf, cut, shape in zip(
        jax.tree.leaves(state.inner), state.layout.state, state.layout.shapes, strict=True
    ):
        assert leaf.shape[0] == 8
        if cut is not None:  # eight shares make the leaf and its padding, and no more
            assert leaf.size == int(np.prod(cut.padded_shape(shape)))


@pytest.mark.parametrize(
    "specs",
    [
        {"kernel": P(None, "model"), "layers": P(None, "data", "model"), "odd": P()},
        {"kernel": P("model"), "layers": P(None, None, "model"), "odd": P()},
    ],
    ids=["fsdp and tensor", "tensor"],
)
def test_parameters_come_back_in_the_layout_they_came_in(specs):
    mesh = make_mesh((4, 2), ("data", "model"))
    params = jax.device_put(mixed_params(), NamedSharding(mesh, P()))
    params["dense"]["kernel"] = jax.device_put(
        params["dense"]["kernel"], NamedSharding(mesh, specs["kernel"])
    )
    params["layers"][0] = jax.device_put(params["layers"][0], NamedSharding(mesh, specs["layers"]))
    case = next(case for case in RULES if case.name == "adamw")
    rule = jl.zero(_guarded(case), mesh, axis="data", min_bytes=0)
    state, before = rule.init(params), jax.tree.map(lambda p: p.sharding, params)
    step = jax.jit(_step(rule, []))
    for _ in range(_STEPS):
        params, state = jax.block_until_ready(step(params, state, _data()))
    jax.tree.map(
        lambda p, s: p.sharding.is_equivalent_to(s, p.ndim) or pytest.fail(str(p.sharding)), params, before
    )
    mu = state.inner.inner[1][0].mu
    assert mu["dense"]["kernel"].addressable_shards[0].data.size == 16 * 24 // 8
    assert mu["layers"][0].addressable_shards[0].data.size == 4 * 8 * 16 // 8
    _close(params, _unsharded(case), case)


def test_init_allocates_shares_only(mesh8):
    params = jax.device_put({"w": jnp.ones((1024, 64))}, NamedSharding(mesh8, P()))
    state = jl.zero(jl.adam(1e-3), mesh8, axis="data").init(params)
    shards = state.inner[0].mu["w"].addressable_shards
    assert {s.data.shape for s in shards} == {(128, 64)}
    assert len({s.device for s in shards}) == 8


def test_how_leaves_are_cut():
    from jaxopt_large.placement._cuts import choose_cut

    assert choose_cut((8, 128, 512), 8).dim == 1  # neither the layers nor the last axis
    assert choose_cut((8, 512), 8, layers=True).dim == 1
    assert choose_cut((50257, 768), 8).dim == 1  # the one that divides
    assert choose_cut((128, 4096), 8).dim == 0
    pod = AbstractMesh((512, 8), ("data", "model"))
    assert choose_cut((4096, 16384), 512, P(None, "model"), pod).dim == 0  # minor to it, shares were 4 wide
    assert choose_cut((4096, 65536), 512, P(None, "model"), pod).dim == 0  # of 16 are no whole blocks
    assert choose_cut((4096, 2**19), 512, P(None, "model"), pod).dim == 1
    assert choose_cut((1009, 33), 8) == choose_cut((1009, 33), 8)
    assert (choose_cut((1009, 33), 8).dim, choose_cut((1009, 33), 8).padded) == (0, 1016)  # 0.7 % of padding
    assert (choose_cut((7, 9), 8).dim, choose_cut((7, 9), 8).padded) == (None, 64)  # flattened
    assert choose_cut((), 8).padded == 8
    assert choose_cut((0, 3), 8) is None


@pytest.mark.parametrize("shape", [(31, 37, 41), (1009, 33), (17, 1001), (13, 4099), (50257, 7)], ids=str)
@pytest.mark.parametrize("sizes", [(8,), (4, 2)], ids=str)
def test_uneven_leaves_take_their_share_of_bytes(shape, sizes):
    mesh = make_mesh(sizes, ("data", "model")[: len(sizes)])
    axis = mesh.axis_names if len(sizes) > 1 else "data"
    params = jax.device_put({"w": jnp.ones(shape)}, NamedSharding(mesh, P()))
    rule = jl.zero(jl.adam(1e-2), mesh, axis)
    state = rule.init(params)
    for field in (state.inner[0].mu, state.inner[0].nu):
        held = [s.data.nbytes for s in field["w"].addressable_shards]
        assert len(set(held)) == 1
        assert held[0] <= 1.01 * params["w"].nbytes / 8
    updates, state = jax.jit(rule.update)(params, state, params)
    assert updates["w"].sharding.is_equivalent_to(params["w"].sharding, len(shape))
    plain = jl.adam(1e-2)
    expected, _ = jax.jit(plain.update)(params, plain.init(params), params)
    np.testing.assert_allclose(np.asarray(updates["w"]), np.asarray(expected["w"]), rtol=1e-6)


def test_small_leaves_and_layer_axes_are_left_alone(mesh8):
    shapes = {"scale": (8192,), "blocks": {"w": (8, 64, 512), "b": (8, 4096)}}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    params = jax.device_put(params, NamedSharding(mesh8, P()))
    specs = jl.state_specs(jl.zero(jl.adam(1e-2), mesh8, "data", layers="blocks*"), params).inner[0].mu
    assert specs == {"scale": P(), "blocks": {"w": P(None, "data"), "b": P(None, "data")}}


def test_state_shardings_of_plain_rules_follow_the_parameters(mesh8):
    params = {"w": jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh8, P("data")))}
    got = jl.state_shardings(jl.adamw(1e-3), params)
    assert got[0].mu["w"] == NamedSharding(mesh8, P("data"))
    assert got[0].count.spec == P()
    state = jax.jit(jl.adamw(1e-3).init, out_shardings=got)(params)
    assert state[0].nu["w"].addressable_shards[0].data.shape == (1, 4)


def test_state_shardings_find_zero_inside_chains_and_groups(mesh8):
    shape = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=NamedSharding(mesh8, P()))
    params = {"a": shape, "b": shape}
    rule = optax.chain(
        jl.partition({"a": jl.zero(jl.adam(1e-3), mesh8, "data", min_bytes=0), "b": jl.lion(1e-3)})
    )
    got = jl.state_shardings(rule, params)
    specs = [s.spec for s in jax.tree.leaves(got)]
    assert sorted(map(str, specs)) == sorted(map(str, [P(), P("data"), P("data"), P()]))


def test_gradients_that_differ_between_devices_are_averaged():
    rule = jl.zero(jl.sgd(1.0), axis_name="i")
    grads = jnp.arange(8.0)[:, None] * jnp.ones((8, 3))
    state = jax.pmap(rule.init, axis_name="i")(grads)
    updates, _ = jax.pmap(rule.update, axis_name="i")(grads, state)
    np.testing.assert_array_equal(np.asarray(updates), -3.5 * np.ones((8, 3)))


@pytest.mark.compat
def test_errors(mesh8):
    params = {"w": jnp.ones((8, 8))}
    with pytest.raises(
        ValueError, match=r"zero: axis is not in the mesh, got 'model'; the axes are 'data' \(8\)"
    ):
        jl.zero(jl.adam(1e-3), mesh8, axis="model")
    with pytest.raises(TypeError, match="a mesh and an axis under jit, or axis_name alone"):
        jl.zero(jl.adam(1e-3))
    with pytest.raises(TypeError, match="a mesh and an axis under jit, or axis_name alone"):
        jl.zero(jl.adam(1e-3), mesh8, "data", axis_name="data")
    with pytest.raises(ValueError, match="axis_name is not a mapped axis here, got 'data'"):
        jl.zero(jl.adam(1e-3), axis_name="data").init(params)
    other = make_mesh((4,), ("data",), devices=jax.devices()[:4])
    placed = jax.device_put(params, NamedSharding(other, P()))
    with pytest.raises(ValueError, match=r"a parameter lives on another mesh, .data=4. at w"):
        jl.zero(jl.adam(1e-3), mesh8, axis="data").init(placed)
    state = jl.zero(jl.adam(1e-3), other, axis="data").init(placed)
    with pytest.raises(ValueError, match=r"the state was made for another mesh, .data=4."):
        jl.zero(jl.adam(1e-3), mesh8, axis="data").update(params, state, params)
    with pytest.raises(
        ValueError, match=r"zero: the rule is inside another zero; one zero divides the state. Drop one"
    ):
        jl.zero(optax.chain(jl.zero(jl.adam(1e-3), mesh8, "data")), mesh8, "data").init(params)


def test_a_leaf_that_follows_nothing_is_an_error_until_a_spec_is_given(mesh8):
    def init(params):
        return {"gram": jnp.zeros((300, 200)), "inner": jl.adam(1e-3).init(params)}

    def update(updates, state, params=None):
        return updates, state

    rule = optax.GradientTransformation(init, update)
    params = jax.device_put({"w": jnp.ones((256, 256))}, NamedSharding(mesh8, P()))
    with pytest.raises(
        ValueError, match=r"zero: cannot tell how a state leaf of shape .300, 200. .* at gram; "
    ):
        jl.zero(rule, mesh8, "data").init(params)
    state = jl.zero(rule, mesh8, "data", specs={"gram": P(None, "data")}).init(params)
    assert state.inner["gram"].addressable_shards[0].data.shape == (300, 25)
    with pytest.raises(ValueError, match=r"divides dimension 0 of shape .300, 200. by 8 at gram"):
        jl.zero(rule, mesh8, "data", specs={"gram": P("data")}).init(params)
    with pytest.raises(ValueError, match="specs names 'grams', which matches no leaf"):
        jl.zero(rule, mesh8, "data", specs={"gram": P(), "grams": P()}).init(params)
