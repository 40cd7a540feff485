"""Roles: what a leaf is read as, who gets which rule, and what is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl
from jaxopt_large.matrix.roles import Role

from .cases import ROLES, leaf, params


@pytest.mark.parametrize(
    ("text", "shape", "units", "inner", "matrix"),
    [
        ("in out", (4, 6), 1, 1, (4, 6)),
        ("out in", (6, 4), 1, 1, (4, 6)),
        ("layers in out", (3, 4, 6), 3, 1, (4, 6)),
        ("layers experts in out", (3, 2, 4, 6), 6, 1, (4, 6)),
        ("in experts out", (4, 2, 6), 2, 1, (4, 6)),
        ("in (3 out)", (4, 18), 1, 3, (4, 6)),
        ("layers (2 in) (3 out)", (5, 8, 18), 5, 6, (4, 6)),
        ("in (out 3)", (4, 18), 1, 3, (4, 6)),
        ("in in in out", (3, 3, 2, 6), 1, 1, (18, 6)),
        ("in out out", (4, 2, 3), 1, 1, (4, 6)),
    ],
)
def test_views(text, shape, units, inner, matrix):
    view = Role(text).view(shape)
    assert (view.inner, (view.rows, view.columns)) == (inner, matrix)
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    order = (*view.units, *(d for d in range(len(shape)) if d not in view.units))
    apart = x.transpose(order).reshape(units, *view.unit)
    made = view.matrices(apart)
    assert made.shape == (units * inner, *matrix)
    assert np.array_equal(view.from_matrices(made), apart)


def test_views_read_as_numpy_would():
    x = np.arange(2 * 4 * 18).reshape(2, 4, 18)
    side_by_side = Role("layers in (3 out)").view(x.shape).matrices(jnp.asarray(x))
    assert np.array_equal(side_by_side, np.stack(np.split(x, 3, axis=2), axis=1).reshape(6, 4, 6))
    heads_last = Role("layers in (out 3)").view(x.shape).matrices(jnp.asarray(x))
    assert np.array_equal(heads_last[1], x[0].reshape(4, 6, 3)[:, :, 1])


@pytest.mark.parametrize(
    ("role", "text"),
    [
        (jl.roles.matrix(), "in out"),
        (jl.roles.matrix(transposed=True), "out in"),
        (jl.roles.stack(), "layers in out"),
        (jl.roles.experts(), "experts in out"),
        (jl.roles.experts(layers=True), "layers experts in out"),
        (jl.roles.fused(), "in (3 out)"),
        (jl.roles.fused(2, layers=True), "layers in (2 out)"),
        (jl.roles.heads(12), "in (12 out)"),
        (jl.roles.convolution(), "in in in out"),
        (jl.roles.convolution(1), "in in out"),
        (jl.roles.other(), "other"),
    ],
)
def test_constructors(role, text):
    assert role == Role(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "in",
        "out",
        "in in",
        "layers",
        "in (3)",
        "in (0 out)",
        "in (a out)",
        "in (3 a out)",
        "in (3 out",
        "in out)",
    ],
)
def test_other_grammar_is_refused(text):
    with pytest.raises(ValueError, match="muon: role") as caught:
        jl.muon(0.1, roles={"*": text})
    assert repr(text) in str(caught.value)


def _groups(rule, tree):
    rows = jl.explain(rule, tree).rows
    return {row.path: row.group for row in rows if row.path != "-"}


def test_names_of_embeddings_heads_norms_and_biases_go_to_the_other_rule():
    tree = {
        "embed": jnp.ones((8, 4)),
        "wte": jnp.ones((8, 4)),
        "lm_head": {"kernel": jnp.ones((4, 8))},
        "head": jnp.ones((4, 8)),
        "layers": {
            "norm": jnp.ones((3, 4)),
            "bias": jnp.ones((3, 4)),
            "heads_q": jnp.ones((4, 4)),
            "up": jnp.ones((4, 8)),
        },
        "gain": jnp.ones(4),
        "none": jnp.ones((0, 4)),
    }
    found = _groups(jl.muon(0.1), tree)
    matrices = [path for path, group in found.items() if group == "matrices"]
    assert sorted(matrices) == ["layers/heads_q", "layers/up"]
    everything = _groups(jl.muon(0.1, other_leaves=""), tree)
    assert {path for path, group in everything.items() if group == "other"} == {"gain", "none"}


def test_declared_leaves_go_to_the_other_rule():
    tree = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((2, 3, 4, 5))}
    found = _groups(jl.muon(0.1, roles={"b|c": jl.roles.other()}), tree)
    assert found == {"a": "matrices", "b": "other", "c": "other"}


_REFUSED = {
    "only vectors": ({}, {"b": (3,), "c": ()}, "none of 2 leaves is a matrix"),
    "undeclared": (
        {},
        {"w": (2, 3, 4), "m": (3, 4)},
        r"a leaf of 3 dimensions has no role, got shape \(2, 3, 4\) at w",
    ),
    "wrong rank": (
        {"roles": {"w": jl.roles.stack()}},
        {"w": (3, 4)},
        r"role 'layers in out' is for 3 dimensions, got shape \(3, 4\) at w",
    ),
    "uneven": (
        {"roles": {"w": jl.roles.fused(3)}},
        {"w": (3, 4)},
        r"role 'in \(3 out\)' takes a dimension of 4 apart into 3 at w",
    ),
    "no leaf": (
        {"roles": {"x*": jl.roles.stack()}},
        {"w": (3, 4)},
        r"roles name 'x\*', which matches no leaf; the nearest are 'w'",
    ),
    "taken": (
        {"roles": {"embed": "in out"}},
        {"embed": (3, 4), "w": (3, 4)},
        "roles name 'embed', which gets no leaf",
    ),
}


@pytest.mark.parametrize("kind", _REFUSED)
@pytest.mark.parametrize("name", ["muon", "soap"])
def test_refused(name, kind):
    given, shapes, wrong = _REFUSED[kind]
    rule = getattr(jl, name)(0.1, **given)
    with pytest.raises(ValueError, match=f"{name}: {wrong}"):
        rule.init({path: jnp.ones(shape) for path, shape in shapes.items()})


def test_all_problems_are_named_at_once():
    tree = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 3, 4, 5)), "c": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match="at a") as caught:
        jl.muon(0.1, roles={"c": jl.roles.stack(), "d": jl.roles.stack()}).init(tree)
    assert len(str(caught.value).splitlines()) == 4


def test_the_line_to_write_is_told():
    with pytest.raises(ValueError, match=r"roles=\{'w': jl.roles.stack\(\)\}"):
        jl.muon(0.1).init({"w": jnp.ones((2, 3, 4))})


def test_a_direction_takes_nothing_but_matrices():
    with pytest.raises(
        ValueError, match=r"scale_by_muon: a leaf is no matrix, got shape \(10,\) at bias"
    ) as caught:
        jl.scale_by_muon(roles=ROLES).init(params())
    assert "jl.muon" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "error", "wrong"),
    [
        ({"roles": 3}, TypeError, "roles is not a mapping, got 3"),
        ({"roles": {"*": 3}}, TypeError, "a role is not a string or a Role, got 3"),
        ({"owners": 3}, TypeError, "owners are no axes, got 3"),
        ({"other": 3}, TypeError, "other is not a rule, got 3"),
        ({"other_leaves": 3}, TypeError, "other_leaves is not a glob, got 3"),
        ({"ns_coeffs": "x"}, ValueError, "ns_coeffs is unknown, got 'x'"),
        ({"ns_coeffs": (1.0, 2.0)}, TypeError, "ns_coeffs are no coefficients"),
        ({"ns_steps": 0}, ValueError, "ns_steps is out of range, got 0"),
        ({"ns_steps": 2.5}, TypeError, "ns_steps is no whole number, got 2.5"),
        ({"beta": 1.0}, ValueError, "beta is out of range, got 1.0"),
        ({"scale": "x"}, ValueError, "scale is unknown, got 'x'"),
        ({"preconditioning": "x"}, ValueError, "preconditioning is unknown, got 'x'"),
        ({"ns_dtype": "int8"}, ValueError, "ns_dtype is not a floating dtype, got 'int8'"),
        ({"other_ratio": 0.0}, ValueError, "other_ratio is out of range, got 0.0"),
    ],
)
@pytest.mark.parametrize("name", ["muon", "normuon"])
def test_arguments(name, given, error, wrong):
    with pytest.raises(error, match=f"{name}: {wrong}"):
        getattr(jl, name)(0.1, **given)


@pytest.mark.parametrize("name", ["soap", "shampoo", "kron"])
def test_blocks_that_are_larger_than_all_matrices(name):
    tree = {"w": jnp.ones((8, 24)), "v": jnp.ones((16, 8))}
    with pytest.raises(
        ValueError, match=f"{name}: block is larger than every dimension, got 32, and the longest is 24"
    ):
        getattr(jl, name)(0.1, block=32).init(tree)
    getattr(jl, name)(0.1, block=24).init(tree)


@pytest.mark.parametrize("name", ["soap", "shampoo", "kron", "dion"])
def test_complex_leaves_of_rules_of_real_ones(name):
    with pytest.raises(TypeError, match=f"{name}: works on real numbers only, got a complex leaf at w"):
        getattr(jl, name)(0.1).init({"w": jnp.ones((8, 8), jnp.complex64)})


@pytest.mark.parametrize("name", ["muon", "normuon", "soap", "shampoo", "kron", "dion", "scion"])
def test_numbers_that_are_injected(name):
    static = ("ns_steps", "ns_coeffs", "refresh", "block", "exponent", "rank", "seed", "other_ratio")
    own = inspect.signature(getattr(jl, name)).parameters
    fixed = tuple(word for word in static if word in own)
    rule, plain = optax.inject_hyperparams(getattr(jl, name), static_args=fixed)(0.1), getattr(jl, name)(0.1)
    tree = {"w": leaf(0, 4, 6)}
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = jax.jit(rule.update)(tree, rule.init(tree), tree)
        expected, _ = jax.jit(plain.update)(tree, plain.init(tree), tree)
    np.testing.assert_allclose(updates["w"], expected["w"], rtol=1e-3, atol=1e-4)


def test_whole_numbers_that_are_injected_must_be_static():
    with (
        jax.numpy_dtype_promotion("standard"),
        pytest.raises(TypeError, match="Pass static_args='ns_steps' to inject_hyperparams"),
    ):
        optax.inject_hyperparams(jl.muon)(0.1).init({"w": jnp.ones((4, 4))})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_complex_matrices_have_complex_products(dtype):
    x = jax.lax.complex(leaf(0, 6, 8), leaf(1, 6, 8))
    rule = jl.orthogonalize("polar_express", ns_dtype=dtype)
    made, _ = rule.update(x, rule.init(x))
    values = np.linalg.svd(np.asarray(made), compute_uv=False)
    assert np.all(np.abs(values - 1) < 0.15)
