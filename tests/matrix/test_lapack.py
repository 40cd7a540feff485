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
