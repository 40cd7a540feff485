"""Factorizations of many batches at once: of the same numbers, and without end of waiting."""

import jax
import numpy as np
import pytest

from jaxopt_large.matrix import lapack

from .cases import leaf


@pytest.mark.timeout(120)  # where threads wait for each other, they do so for ever
def test_many_batches_at_once_do_not_wait_for_each_other():
    batches = [leaf(n, 4, 128, 128) for n in range(6)]
    made = jax.jit(lambda xs: [lapack.orthonormal(x) for x in xs])
    for _ in range(5):
        bases = jax.block_until_ready(made(batches))
    for q in bases:
        np.testing.assert_allclose(q.mT @ q, np.broadcast_to(np.eye(128), q.shape), atol=1e-5)


def test_each_matrix_by_itself():
    x = leaf(0, 3, 6, 6)
    upper = np.triu(x) + 3 * np.eye(6)
    for of in (lambda f: f, jax.jit):
        np.testing.assert_allclose(
            of(lapack.largest_singular_values)(x), np.linalg.norm(x, 2, axis=(1, 2)), rtol=1e-5
        )
        np.testing.assert_allclose(of(lapack.upper_inverse)(upper), np.linalg.inv(upper), atol=1e-5)
        for n in range(3):
            alone = of(lapack.orthonormal)(x[n : n + 1])
            np.testing.assert_allclose(of(lapack.orthonormal)(x)[n], alone[0], atol=1e-6)


def test_no_matrix_decides_how_another_is_treated():
    x = leaf(2, 1, 12, 6)
    want = jax.jit(lapack.by_cholesky)(np.concatenate([x, 2 * x]))[0]
    for other in (np.zeros_like(x), np.full_like(x, np.nan), leaf(3, 1, 12, 6)):
        both = jax.jit(lapack.by_cholesky)(np.concatenate([x, other]))
        assert np.array_equal(both[0], want)


def test_vmap_makes_no_batches_of_them():
    x = leaf(4, 3, 2, 6, 6)
    made = jax.jit(jax.vmap(lapack.orthonormal))
    calls = [line for line in made.lower(x).as_text().splitlines() if "lapack" in line]
    assert calls
    assert not any("tensor<3x6x6xf32>" in line for line in calls)
    np.testing.assert_allclose(made(x)[1], lapack.orthonormal(x[1]), atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["well apart", "nearly dependent", "dependent", "zero column", "of all sizes"]
)
def test_what_accelerators_do_is_orthonormal_too(kind):
    """And spans the same spaces: x is q times an upper triangular matrix."""
    x = np.asarray(leaf(1, 2, 12, 6))
    change = {
        "well apart": lambda: None,
        "nearly dependent": lambda: x[0].__setitem__((slice(None), 3), x[0, :, 2] * (1 + 1e-5 * x[0, :, 1])),
        "dependent": lambda: x[0].__setitem__((slice(None), 3), x[0, :, 2]),
        "zero column": lambda: x[0].__setitem__((slice(None), 3), 0.0),
        "of all sizes": lambda: x.__imul__(np.geomspace(1e-15, 1e15, 6, dtype=np.float32)),
    }
    x = x.copy()
    change[kind]()
    q = np.asarray(jax.jit(lapack.by_cholesky)(x))
    np.testing.assert_allclose(q.mT @ q, np.broadcast_to(np.eye(6), (2, 6, 6)), atol=1e-5)
    upper = q.mT @ (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30))
    np.testing.assert_allclose(np.tril(upper, -1), 0.0, atol=1e-5)
