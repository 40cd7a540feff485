"""Any rule, ours or optax's, on any placement: sharded equals unsharded, and nothing is replicated unsaid."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxopt_large as jl
from jaxopt_large._partition import respelled
from jaxopt_large.placement._reductions import ReductionError

from ..catalog import RULES, in_turn
from ..peers import PEERS, Peer, extras

P = PartitionSpec
# XLA:CPU fuses their per-step scalars into the loops of leaves or not, as shapes suit it; `came` of a leaf of
# one element divides by the difference of nearly equal numbers
_ROUNDING = {"came": 1e-5, "cocob": 1e-5, **dict.fromkeys(("adamax", "adamaxw", "adan", "laprop"), 1e-6)}
OURS = [
    Peer(f"jl.{case}", case.rule, rounding=_ROUNDING.get(case.name, 0.0 if case.elementwise else 1e-6))
    for case in RULES
]
ANY = OURS + PEERS
MESHES = {"8": {"data": 8}, "4x2": {"data": 4, "model": 2}, "2x2x2": {"data": 2, "fsdp": 2, "model": 2}}
LAYOUTS = ("replicated", "fsdp", "tensor", "both")
_STEPS = 3
_ALIKE = ("adamaxw", "nadamw", "adabelief", "yogi", "adadelta", "amsgrad", "lars", "dowg")  # states of a kind
_ALIKE += ("nadam", "radam", "optimistic_adam_v2", "rprop", "simplified_ademamix", "dog", "fromage")
_LARGE = 100  # elements: a leaf of this size in the state must be divided


@pytest.fixture(autouse=True)
def _as_optax_wants():
    """Many of optax's rules fail under strict promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _cover():
    """Every rule once, kinds of axes, meshes and layouts in turn; the full product is marked so."""
    places = [
        (m, p) for m, p in itertools.product(MESHES, LAYOUTS) if m != "8" or p in ("replicated", "fsdp")
    ]
    for i, peer in enumerate(ANY):
        for j, (place, kind) in enumerate(itertools.product(places, (AxisType.Auto, AxisType.Explicit))):
            chosen = j == (2 * i + i // len(places)) % (2 * len(places))
            marks = () if chosen and str(peer) not in _ALIKE else pytest.mark.full
            yield pytest.param(peer, *place, kind, marks=marks, id=f"{peer}-{place[0]}-{place[1]}-{kind}")


def _params(peer):
    r = np.random.default_rng(0)

    def leaf(*shape):
        return jnp.asarray(r.normal(size=shape), jnp.float32)

    params = {"w": leaf(16, 24), "stack": [leaf(4, 8, 16)], "odd": leaf(9, 7), "bias": leaf(24)}
    return {**params, "scale": leaf()} if peer.scalars else params


def _gradients(params):
    """Of few bits, so that the mean over devices that hold the same is exact."""
    r = np.random.default_rng(1)

    def leaf(p):
        return jnp.asarray(r.normal(size=p.shape), jnp.bfloat16).astype(jnp.float32)

    return [jax.tree.map(leaf, params) for _ in range(_STEPS)]


def _step(peer, rule, traces):
    def step(params, state, grads):
        traces.append(1)
        return rule.update(grads, state, params, **extras(peer))

    return step


def _applied(params, updates):
    """Outside the step: fused with the rule, the sum would be rounded otherwise."""
    return jax.tree.map(lambda p, u: np.asarray(p) + np.asarray(u), params, updates)


@functools.cache
def _unsharded(name):
    """The updates of each step."""
    peer = next(p for p in ANY if p.name == name)
    rule, params = peer.make(), _params(peer)
    step, state, found = jax.jit(_step(peer, rule, [])), rule.init(params), []
    for grads in _gradients(params):
        updates, state = step(params, state, grads)
        params = jax.tree.map(jnp.asarray, _applied(params, updates))
        found.append(jax.tree.map(np.asarray, updates))
    return found


def _check(peer, found):
    for step, (updates, wanted) in enumerate(zip(found, _unsharded(peer.name), strict=True)):
        if not peer.rounding:
            # of 63 elements XLA:CPU computes the last few one by one, without fused multiply-add
            np.testing.assert_allclose(updates.pop("odd"), wanted["odd"], rtol=2e-7, atol=0)
            jax.tree.map(np.testing.assert_array_equal, updates, {k: wanted[k] for k in updates})
            continue
        for got, want in zip(jax.tree.leaves(updates), jax.tree.leaves(wanted), strict=True):
            off = np.linalg.norm((got - want).ravel())
            assert off <= peer.rounding * (step + 1) * np.linalg.norm(want.ravel()), (step, off)


def _layout(params, mesh, layout):
    """Replicated; FSDP over `fsdp`, else over `data`; tensor-parallel over `model`; or both."""
    fsdp = ("fsdp" if "fsdp" in mesh.shape else "data") if layout in ("fsdp", "both") else None
    tensor = "model" if layout in ("tensor", "both") else None
    specs = {
        "w": P(fsdp, tensor),
        "stack": [P(None, tensor, fsdp)],
        "odd": P(),
        "bias": P(tensor),
        "scale": P(),
    }
    return {
        k: jax.tree.map(
            lambda x, s: jax.device_put(x, NamedSharding(mesh, respelled(s, x.ndim))), params[k], specs[k]
        )
        for k in params
    }


@pytest.mark.parametrize(("peer", "mesh_name", "layout", "kind"), list(_cover()))
def test_under_jit(peer, mesh_name, layout, kind):
    sizes = MESHES[mesh_name]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))
    rule, traces = jl.zero(peer.make(), mesh, "data", min_bytes=0), []
    params = _layout(_params(peer), mesh, layout)
    state = rule.init(params)
    _is_divided(state)
    shardings = jl.state_shardings(rule, params)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(s)), state, shardings)
    before = jax.tree.map(lambda p: p.sharding, params)
    step, found = jax.jit(_step(peer, rule, traces), donate_argnums=(1, 2)), []
    for grads in _gradients(_params(peer)):
        grads = jax.tree.map(jax.device_put, grads, before)
        old = [leaf for leaf in jax.tree.leaves((grads, state)) if leaf.size >= _LARGE]
        updates, state = jax.block_until_ready(step(params, state, grads))
        assert all(leaf.is_deleted() for leaf in old)
        jax.tree.map(
            lambda u, s: u.sharding.is_equivalent_to(s, u.ndim) or pytest.fail(str(s)), updates, before
        )
        params = jax.tree.map(jax.device_put, _applied(params, updates), before)
        found.append(jax.tree.map(np.asarray, updates))
    _is_divided(state)
    assert len(traces) == 1
    has_key = any(jnp.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state))
    # among Explicit axes, and of a key's numbers, P() and P(None) are two entries of one compilation
    if kind is AxisType.Auto and not has_key:
        assert step._cache_size() == 1
    _check(peer, found)


def _is_divided(state):
    for leaf in jax.tree.leaves(state):
        if leaf.size >= _LARGE:
            names = [
                n
                for part in leaf.sharding.spec
                if part
                for n in (part if isinstance(part, tuple) else (part,))
            ]
            assert "data" in names, leaf.sharding


@in_turn("peer", ANY, "way", ["shard_map", "shard_map typed", "pmap"])
def test_inside_a_mapped_axis(peer, way, mesh8):
    if peer.name == "jl.sophia":  # its estimates are gradients of whole parameters
        with pytest.raises(ValueError, match=r"hutchinson_diagonal: the rule is inside zero\(axis_name"):
            _run_mapped(peer, way, mesh8)
        return
    if not peer.elementwise:
        with pytest.raises(
            ReductionError, match="inside a mapped axis optax's rules must work element by element"
        ):
            _run_mapped(peer, way, mesh8)
        return
    _check(peer, _run_mapped(peer, way, mesh8))


def _run_mapped(peer, way, mesh):
    rule, params, found, traces = jl.zero(peer.make(), axis_name="data"), _params(peer), [], []
    step = _step(peer, rule, traces)
    if way == "pmap":
        mapped_init = jax.pmap(lambda p, _: rule.init(p), axis_name="data", in_axes=(None, 0))

        def init(params):
            return mapped_init(params, jnp.arange(8))

        def run(params, state, grads):
            return mapped_step(params, state, grads, jnp.arange(8))

        mapped_step = jax.pmap(
            lambda p, s, g, _: step(p, s, g), axis_name="data", in_axes=(None, 0, None, 0), donate_argnums=1
        )
    else:
        typed = way.endswith("typed")
        specs = jl.mapped_state_specs(rule, params, {"data": 8})
        init = jax.jit(jax.shard_map(rule.init, mesh=mesh, in_specs=P(), out_specs=specs, check_vma=typed))
        run = jax.jit(
            jax.shard_map(
                step, mesh=mesh, in_specs=(P(), specs, P()), out_specs=(P(), specs), check_vma=typed
            )
        )
    state = init(params)
    for grads in _gradients(params):
        updates, state = jax.block_until_ready(run(params, state, grads))
        updates = jax.tree.map(lambda x: np.asarray(x)[3] if way == "pmap" else np.asarray(x), updates)
        params = jax.tree.map(jnp.asarray, _applied(params, updates))
        found.append(updates)
    assert len(traces) == 1
    for leaf in jax.tree.leaves(state):
        if leaf.size >= _LARGE:
            assert leaf.addressable_shards[0].data.size == leaf.size // 8
    return found


def test_a_refusal_names_the_transform_and_ours():
    rule = jl.zero(optax.chain(optax.clip_by_global_norm(1.0), jl.adam(1e-2)), axis_name="i")
    params = jnp.ones((8, 64))
    message = (
        "zero: optax.clip_by_global_norm reduces over a leaf within the axis 'i', and would see one device's share "
        "of each leaf; inside a mapped axis optax's rules must work element by element. "
        "Use jl.clip_by_global_norm, which sums over the axis, or zero.rule, mesh, axis. under jit"
    )
    with pytest.raises(ReductionError, match=message):
        jax.pmap(rule.init, axis_name="i")(params)
    noise = jl.zero(optax.chain(optax.add_noise(0.1, 0.5, 0)), axis_name="i")
    with pytest.raises(ReductionError, match=r"optax.add_noise draws random numbers by shape"):
        jax.pmap(noise.init, axis_name="i")(params)


def test_ours_reduce_over_whole_leaves_inside_a_mapped_axis():
    """Our clip and guard pass the check that refuses optax's, and are right."""
    rule = jl.skip_nonfinite(optax.chain(jl.clip_by_global_norm(1.0), jl.adam(1e-2)))
    params = {"w": jnp.full((8, 64), 2.0), "b": jnp.ones(3)}
    expected, _ = jax.jit(rule.update)(params, rule.init(params), params)
    mapped = jl.zero(rule, axis_name="i")

    def once(params, _):
        return mapped.update(params, mapped.init(params), params)[0]

    got = jax.pmap(once, axis_name="i", in_axes=(None, 0))(params, jnp.arange(8))
    jax.tree.map(
        lambda g, e: np.testing.assert_allclose(np.asarray(g)[5], np.asarray(e), rtol=1e-6), got, expected
    )


def test_devices_weigh_their_gradients():
    """By tokens: (sum of weight x gradient) / (sum of weights); what weighs nothing may be NaN."""
    rule = jl.zero(jl.gradient_descent(1.0), axis_name="i")
    grads = jnp.stack([jnp.full((4, 5), float(i)) for i in range(8)]).at[7].set(jnp.nan)
    weights = jnp.asarray([1.0, 2.0, 3.0, 0.0, 1.0, 0.0, 5.0, 0.0])

    def once(grads, weight):
        return rule.update(grads, rule.init(grads), grads, weight=weight)[0]

    got = np.asarray(jax.pmap(once, axis_name="i")(grads, weights))
    np.testing.assert_allclose(got, -np.full((8, 4, 5), (2 + 6 + 4 + 30) / 12), rtol=1e-6)
