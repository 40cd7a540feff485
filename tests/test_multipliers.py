"""Rates by path, depth and width."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl

_PARAMS = {
    "embed": jnp.linspace(-1.0, 1.0, 40).reshape(5, 8),
    "layers": {
        "w": jnp.linspace(-1.0, 1.0, 192).reshape(3, 8, 8),
        "b": jnp.linspace(0.1, 1.0, 24).reshape(3, 8),
    },
    "head": jnp.linspace(-1.0, 1.0, 40).reshape(8, 5),
}
_GRADS = jax.tree.map(lambda x: jnp.cos(3 * x), _PARAMS)


def _updates(rule, params=_PARAMS, grads=_GRADS):
    return jax.jit(rule.update)(grads, rule.init(params), params)[0]


def test_globs_and_depth():
    plain = _updates(jl.adamw(0.1))
    made = _updates(
        jl.with_multipliers(jl.adamw(0.1), {"embed": 0.1, "head": 0.0}, layers="layers/*", layer_decay=0.5)
    )
    np.testing.assert_allclose(made["embed"], 0.1 * plain["embed"], rtol=1e-6)
    assert (made["head"] == 0).all()
    for n in range(3):
        for name in ("w", "b"):
            expected = 0.5 ** (2 - n) * plain["layers"][name][n]
            np.testing.assert_allclose(made["layers"][name][n], expected, rtol=1e-6)


@pytest.mark.parametrize("where", ["zero", "shard_map", "apply", "stored"])
def test_on_shares(where, mesh8):
    params = {"layers": jnp.linspace(-1.0, 1.0, 16 * 24).reshape(16, 24), "other": jnp.linspace(0.0, 1.0, 24)}
    grads = jax.tree.map(jnp.cos, params)
    rule = jl.with_multipliers(jl.adamw(0.1), {"other": 0.3}, layers="layers", layer_decay=0.8)
    expected = optax.apply_updates(params, _updates(rule, params, grads))
    if where == "shard_map":
        own, spec = jl.zero(rule, axis_name="data"), jax.sharding.PartitionSpec()

        def run(g, p):
            return optax.apply_updates(p, own.update(g, own.init(p), p)[0])

        made = jax.jit(jax.shard_map(run, mesh=mesh8, in_specs=spec, out_specs=spec, check_vma=False))(
            grads, params
        )
    else:
        own = {
            "zero": lambda: jl.zero(rule, mesh8, "data"),
            "stored": lambda: jl.stored(rule, mu=jl.float32()),
        }.get(where, lambda: rule)()
        made = jax.jit(lambda g, s, p: jl.apply(own, g, s, p))(grads, own.init(params), params)[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), made, expected)


def test_factors_of_one_change_no_bit():
    made = _updates(jl.with_multipliers(jl.adamw(0.1), {"embed": 1.0}))
    jax.tree.map(np.testing.assert_array_equal, made, _updates(jl.adamw(0.1)))


def test_widths_beside_the_table():
    wide = {
        "embed": jnp.ones((5, 32)),
        "layers": {"w": jnp.ones((3, 32, 32)), "b": jnp.ones((3, 32))},
        "head": jnp.ones((32, 5)),
    }
    grads = jax.tree.map(jnp.ones_like, wide)
    for optimizer, expected in (
        ("adam", {"embed": 1.0, "w": 0.25, "b": 1.0, "head": 0.25}),
        ("sgd", {"embed": 4.0, "w": 1.0, "b": 4.0, "head": 0.25}),
    ):
        made = _updates(jl.mup(jl.sgd(1.0), _PARAMS, optimizer=optimizer), wide, grads)
        found = {"embed": made["embed"], "head": made["head"], **made["layers"]}
        assert {name: -float(x.ravel()[0]) for name, x in found.items()} == expected
    turned = jax.tree.map(lambda x: x.T if x.ndim == 2 else x, wide)
    base = jax.tree.map(lambda x: x.T if x.ndim == 2 else x, _PARAMS)
    made = _updates(
        jl.mup(jl.sgd(1.0), base, transposed="head|embed"), turned, jax.tree.map(jnp.ones_like, turned)
    )
    assert (-float(made["head"][0, 0]), -float(made["embed"][0, 0])) == (0.25, 1.0)
    same = _updates(jl.mup(jl.adamw(0.1), _PARAMS))
    jax.tree.map(np.testing.assert_array_equal, same, _updates(jl.adamw(0.1)))


# --- the check of coordinates ----------------------------------------------------------------------------


def _mlp(width, key):
    """Initial values as muP has them: an output of zeros, hidden ones of 1/fan in."""
    keys = jax.random.split(key, 3)
    return {
        "input": jax.random.normal(keys[0], (16, width)),
        "hidden_1": jax.random.normal(keys[1], (width, width)) / np.sqrt(width),
        "hidden_2": jax.random.normal(keys[2], (width, width)) / np.sqrt(width),
        "output": jnp.zeros((width, 4)),
    }


def _activations(params, x):
    h = jnp.tanh(x @ params["input"] / 4.0)
    one = h @ params["hidden_1"]
    two = jnp.tanh(one) @ params["hidden_2"]
    return {"first": one, "second": two, "output": jnp.tanh(two) @ params["output"]}


def _sizes(width, rule_of, steps=4):
    """The mean size of what training has changed in each activation."""
    x = jax.random.normal(jax.random.key(5), (64, 16))
    y = jnp.sin(x[:, :4])
    params = begun = _mlp(width, jax.random.key(width))
    rule = rule_of(jax.eval_shape(lambda: _mlp(32, jax.random.key(0))))
    state = rule.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda p: jnp.mean((_activations(p, x)["output"] - y) ** 2))(params)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    moved = jax.tree.map(
        lambda a, b: jnp.mean(jnp.abs(a - b)), _activations(params, x), _activations(begun, x)
    )
    return {name: float(v) for name, v in moved.items()}


def test_activations_move_alike_at_four_widths():
    """The coordinate check: within twice of each other with muP; plain Adam's grow with the width."""
    widths = (32, 64, 128, 256)
    scaled = [_sizes(w, lambda base: jl.mup(jl.adam(0.005), base)) for w in widths]
    plain = [_sizes(w, lambda base: jl.adam(0.005)) for w in widths]
    for name in ("first", "second", "output"):
        sizes = [s[name] for s in scaled]
        assert max(sizes) < 2 * min(sizes), (name, sizes)
    assert plain[-1]["output"] > 4 * plain[0]["output"]


@pytest.mark.parametrize(
    ("make", "error", "expected"),
    [
        (lambda: jl.with_multipliers(jl.sgd(0.1), {"embed": -1.0}), ValueError, r"lr\['embed'\] is out of range, got -1.0"),
        (lambda: jl.with_multipliers(jl.sgd(0.1), {"embed": "x"}), TypeError, r"lr\['embed'\] is not a number"),
        (lambda: jl.with_multipliers(0.1), TypeError, "rule is not a rule, got 0.1"),
        (lambda: jl.with_multipliers(jl.sgd(0.1), layers="*"), ValueError, r"layers and layer_decay go together, got '\*' and None"),
        (lambda: jl.with_multipliers(jl.sgd(0.1), layers="*", layer_decay=0.0), ValueError, "layer_decay is out of range"),
        (lambda: jl.with_multipliers(jl.sgd(0.1), {"embd": 1.0}).init(_PARAMS), ValueError, "'embd' matches no leaf that no glob before it does; the nearest are 'embed'"),
        (lambda: jl.with_multipliers(jl.sgd(0.1), layers="layer/*", layer_decay=0.5).init(_PARAMS), ValueError, "layers"),
        (lambda: jl.mup(0.1, _PARAMS), TypeError, "rule is not a rule"),
        (lambda: jl.mup(jl.sgd(0.1), _PARAMS, optimizer="lion"), ValueError, "optimizer is unknown, got 'lion'"),
        (lambda: jl.mup(jl.sgd(0.1), {"w": jnp.ones((2, 2))}).init({"v": jnp.ones((2, 2))}), ValueError, "the base model has no such parameter at v"),
        (lambda: jl.mup(jl.sgd(0.1), {"w": jnp.ones(2)}).init({"w": jnp.ones((2, 2))}), ValueError, r"another number of dimensions, got \(2, 2\) at w; it has \(2,\)"),
    ],
)  # fmt: skip
def test_what_is_refused(make, error, expected):
    with pytest.raises(error, match=expected):
        make()
