"""`apply` gives the numbers of `update` and `apply_updates`, for any rule, in any wrapper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxopt_large as jl
from jaxopt_large.fused._step import Step, step_of

from ..catalog import every_kind, in_turn, some_of
from .cases import arrays

_MATRICES = lambda p: jax.tree.map(lambda x: x.ndim > 1, p)  # noqa: E731


def _plain(rule):
    def step(grads, state, params, **extra):
        updates, state = rule.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


def _params(dtype=jnp.float32):
    return {
        "w": arrays((48, 160), dtype, 0),
        "layers": [{"q": arrays((3, 16, 130), dtype, 1), "norm": arrays((40,), dtype, 2)}],
        "scale": jnp.asarray(0.5, dtype),
    }


def _grads(params, seed, scale=1.0, dtype=None):
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(
        [arrays(p.shape, dtype or p.dtype, (seed, n), scale) for n, p in enumerate(leaves)]
    )


def _compare(rule, params, *, steps=3, exact=True, extra=None, kernels="auto"):
    fast = jax.jit(functools.partial(jl.apply, rule, kernels=kernels))
    slow = jax.jit(_plain(rule))
    got = want = (params, rule.init(params))
    for seed in range(steps):
        grads = _grads(params, seed + 5)
        got = fast(grads, got[1], got[0], **(extra or {}))
        want = slow(grads, want[1], want[0], **(extra or {}))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        if exact:
            np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
        elif jnp.issubdtype(x.dtype, jnp.floating):
            np.testing.assert_allclose(
                np.asarray(x, np.float64), np.asarray(y, np.float64), rtol=2e-5, atol=1e-6
            )
        else:  # codes, of which the last bit of a number may decide
            assert np.max(np.abs(np.asarray(x, np.int64) - np.asarray(y, np.int64))) <= 1
    return got


@pytest.mark.compat
@every_kind
def test_our_rules_bit_for_bit(case):
    _compare(case.rule(), _params())


_OPTAX = {
    **{name: getattr(optax, name) for name in ("adamw", "lion", "adagrad", "rmsprop", "nadam", "adabelief")},
    "sgd": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "ademamix": contrib.ademamix,
    "lamb": optax.lamb,
    "adafactor": functools.partial(optax.adafactor, min_dim_size_to_factor=8),
    "muon": contrib.muon,
    "novograd": optax.novograd,
}


@pytest.mark.parametrize("name", some_of(_OPTAX, "adamw", "lion", "adagrad", "rmsprop", "adabelief"))
def test_optax_rules_bit_for_bit(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        # between matrix products XLA fuses as it likes
        _compare(_OPTAX[name](1e-2), _params(), exact=name != "muon")


_AROUND = {
    "clip": lambda r: optax.chain(jl.clip_by_global_norm(0.5), r),
    "optax's clip": lambda r: optax.chain(optax.clip_by_global_norm(0.5), r),
    "schedule": lambda r: optax.chain(r, optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, 5))),
    "skip": jl.skip_nonfinite,
    "masked": lambda r: optax.masked(r, _MATRICES),
    "inject": lambda r: optax.chain(
        optax.inject_hyperparams(optax.scale)(step_size=optax.linear_schedule(1.0, 0.5, 4)), r
    ),
    "partition": lambda r: jl.partition({"w": r, "*": jl.sgd(1e-2)}),
    "MultiSteps": lambda r: optax.MultiSteps(r, 2).gradient_transformation(),
    "accumulate": lambda r: jl.accumulate(r, 2),
    "apply_if_finite": lambda r: optax.apply_if_finite(r, 3),
    "norm of updates": lambda r: optax.chain(r, optax.clip_by_global_norm(1e-3)),
}
_INNER = {
    "int8": lambda: jl.stored(jl.adamw(1e-2), mu=jl.int8(), nu=jl.int8()),
    "float32": lambda: jl.adamw(1e-2),
}


@in_turn(
    "around",
    _AROUND,
    "inner",
    _INNER,
    left=("optax's clip", "inject", "apply_if_finite", "partition", "masked"),
)
def test_wrappers(around, inner):
    with jax.numpy_dtype_promotion("standard"):
        rule = _AROUND[around](_INNER[inner]())
        _compare(rule, _params(), exact=inner == "float32")
        if inner == "int8":
            _compare(rule, _params(), exact=False, kernels="interpret", steps=2)


def test_a_step_that_is_skipped_changes_no_bit():
    rule, params = jl.skip_nonfinite(_INNER["int8"]()), _params()
    for kernels in ("xla", "interpret"):
        step = jax.jit(functools.partial(jl.apply, rule, kernels=kernels))
        before = step(_grads(params, 0), rule.init(params), params)
        grads = _grads(params, 1)
        grads["scale"] = jnp.float32(np.nan)
        after = step(grads, before[1], before[0])
        assert int(after[1].skipped) == 1
        for x, y in zip(
            jax.tree.leaves((before[0], before[1].inner)),
            jax.tree.leaves((after[0], after[1].inner)),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kept", [None, jl.rounded, jl.split])
def test_parameters_in_bfloat16(kept):
    params = _params(jnp.bfloat16)
    rule = jl.stored(jl.adamw(1e-2), params=kept and kept(), mu=jl.int8(), nu=jl.int8())
    with jax.numpy_dtype_promotion("standard"):
        if kept is None:
            with pytest.warns(UserWarning, match="low precision"):
                rule.init(params)
            return
        _compare(rule, params, exact=False)
        _compare(rule, params, exact=False, kernels="interpret")


def test_gradients_of_another_dtype_under_strict_promotion():
    params, rule = _params(), _INNER["int8"]()
    grads = _grads(params, 1, dtype=jnp.bfloat16)
    got, _ = jl.apply(rule, grads, rule.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        want, _ = _plain(rule)(grads, rule.init(params), params)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert x.dtype == y.dtype == jnp.float32
        np.testing.assert_allclose(x, y, rtol=1e-2)


def test_trees_of_all_kinds():
    rule = jl.adam(1e-2)
    for params in ({}, {"a": None, "b": jnp.ones(3)}, jnp.ones(()), [jnp.ones((0, 3)), jnp.ones((2, 3))]):
        _compare(rule, params)


def test_outside_jit_and_in_a_scan():
    rule, params = _INNER["int8"](), {"w": arrays((48, 160), jnp.float32, 0)}
    grads = _grads(params, 1)
    once = jl.apply(rule, grads, rule.init(params), params)
    step = lambda carry, _: (jl.apply(rule, grads, carry[1], carry[0]), None)  # noqa: E731
    scanned, _ = jax.jit(lambda c: jax.lax.scan(step, c, None, length=1))((params, rule.init(params)))
    for x, y in zip(jax.tree.leaves(once), jax.tree.leaves(scanned), strict=True):
        np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=1e-6, atol=1e-7)


def test_arguments_of_update_and_side_effects():
    def update(updates, state, params=None, *, factor, **extra):
        del params, extra
        jax.debug.callback(lambda x: seen.append(float(x)), factor)
        return jax.tree.map(lambda g: -g * factor, updates), state

    seen = []
    rule = optax.GradientTransformationExtraArgs(lambda p: (), update)
    params = {"w": jnp.ones(3)}
    got, _ = jax.jit(lambda f: jl.apply(rule, params, (), params, factor=f))(jnp.float32(0.25))
    jax.effects_barrier()
    np.testing.assert_allclose(got["w"], 0.75)
    assert seen == [0.25]


def test_a_state_that_changes_its_structure_still_works():
    rule = optax.GradientTransformation(lambda p: (), lambda g, s, p=None: (g, (jnp.ones(()),)))
    params = {"w": jnp.ones(3)}
    got, state = jl.apply(rule, params, (), params)
    np.testing.assert_allclose(got["w"], 2.0)
    assert len(state) == 1
    (row,) = jl.explain_apply(rule, params)
    assert row.why == "the step calls back, or changes the state's structure: bytes are not counted"


def test_vmap_and_gradients_of_a_step():
    rule = _INNER["int8"]()
    params = {"w": arrays((48, 160), jnp.float32, 0)}
    state = rule.init(params)

    def loss(scale):
        new, _ = jl.apply(rule, jax.tree.map(lambda p: p * scale, params), state, params)
        return jnp.sum(new["w"] ** 2)

    one = [float(loss(s)) for s in (0.5, 2.0)]
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(jnp.array([0.5, 2.0])), one, rtol=1e-5)
    assert np.isfinite(jax.grad(loss)(0.5))


def _count(jaxpr, seen):
    found = 0
    for eqn in jaxpr.eqns:
        found += 1
        for value in eqn.params.values():
            for x in value if isinstance(value, tuple | list) else [value]:
                inner = getattr(x, "jaxpr", x)
                if hasattr(inner, "eqns") and id(inner) not in seen:
                    seen.add(id(inner))
                    found += _count(inner, seen)
    return found


def test_a_thousand_leaves_of_ten_shapes_are_few_equations():
    params = {f"p{n}": jnp.ones((8 * (n % 10 + 1), 16)) for n in range(1000)}
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    ours = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    counts = []
    for step, rule in (
        (_plain(theirs), theirs),
        (functools.partial(jl.apply, theirs), theirs),
        (functools.partial(jl.apply, ours), ours),
    ):
        state = jax.eval_shape(rule.init, params)
        with jax.numpy_dtype_promotion("standard"):
            counts.append(_count(jax.make_jaxpr(step)(params, state, params).jaxpr, set()))
    assert counts[1] <= 0.3 * counts[0], counts
    assert counts[2] <= 0.3 * counts[0], counts


def test_a_step_that_is_short_and_has_no_blocks_runs_as_it_was_traced():
    params = {str(n): jnp.ones((48, 160)) for n in range(10)}
    short = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    for rule, as_traced in ((short, True), (_INNER["int8"](), False), (optax.adamw(1e-3), False)):
        args = (params, rule.init(params), params)
        with jax.numpy_dtype_promotion("standard"):
            jaxpr = jax.make_jaxpr(functools.partial(jl.apply, rule))(*args)
            assert Step.taken(step_of(rule, {}), args).is_short == as_traced
        names = {e.params.get("name") for e in jaxpr.eqns}
        assert ("leaf" in names) != as_traced
        with jax.numpy_dtype_promotion("standard"):
            got, want = (
                jax.jit(lambda p, s, g, r=rule: jl.apply(r, g, s, p))(*args),
                jax.jit(_plain(rule))(*args),
            )
        jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("inner", _INNER)
def test_every_buffer_is_donated_and_nothing_is_copied(inner):
    rule, params = _INNER[inner](), {"w": jnp.ones((256, 512)), "b": jnp.ones(128)}
    state = rule.init(params)
    step = jax.jit(lambda p, s, g: jl.apply(rule, g, s, p), donate_argnums=(0, 1))
    memory = step.lower(params, state, params).compile().memory_analysis()
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((params, state)))
    assert memory.alias_size_in_bytes >= held


@pytest.mark.parametrize(("kept", "dtype", "calls"), [(None, "float32", 1), (jl.rounded, "bfloat16", 6)])
def test_leaves_with_the_same_equations_share_a_function(kept, dtype, calls):
    rule = jl.stored(jl.adamw(1e-3), params=kept and kept(), mu=jl.int8(), nu=jl.int8())
    params = {f"{n}": jnp.ones((48, 160), dtype) for n in range(6)}
    jaxpr = jax.make_jaxpr(functools.partial(jl.apply, rule))(params, rule.init(params), params).jaxpr
    leaves = [e for e in jaxpr.eqns if e.params.get("name") == "leaf"]
    assert len(leaves) == calls
    assert len({id(e.params["jaxpr"].jaxpr) for e in leaves}) == 1


def test_one_pass_reads_gradient_parameter_and_state_once():
    rule = optax.chain(jl.clip_by_global_norm(1.0), _INNER["int8"]())
    params = {"w": jnp.ones((48, 160)), "v": jnp.ones((48, 160))}
    step = Step.taken(step_of(rule, {}), (params, rule.init(params), params))
    for p in step.split.passes:
        assert len(p.inputs) == len(p.results) + 1 == 6
        assert not p.repeats
        assert all(step.split.graph.types[v].shape == () for v in p.scalars)


def test_errors():
    rule, params = jl.adam(1e-2), {"w": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"apply: kernels is unknown, got 'cuda'; one of"):
        jl.apply(rule, params, rule.init(params), params, kernels="cuda")
    with pytest.raises(ValueError, match=r"explain_apply: platform is unknown, got 'metal'; one of"):
        jl.explain_apply(rule, params, platform="metal")
    with pytest.raises(TypeError, match=r"apply: rule is not a rule, got 3"):
        jl.apply(3, params, (), params)
    with pytest.raises(ValueError, match=r"the structure of the params: missing 'w'; unexpected 'v'"):
        jl.apply(rule, {"v": params["w"]}, rule.init(params), params)
