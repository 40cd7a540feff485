import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxopt_large._numerics import divide, plus


@pytest.mark.parametrize("eps", [0, 0.0, 1e-45, 1e-40, 1e-8, np.float32(1e-8), "array", "zero array"])
def test_a_denominator_of_zero_gives_zero_whatever_is_known_of_it(eps):
    """1e-45 and 1e-40 are subnormal: CPUs flush them to 0."""
    eps = {"array": jnp.float32(1e-8), "zero array": jnp.float32(0.0)}.get(eps, eps)
    got = jax.jit(lambda n, d: divide(n, plus(d, eps), eps))(
        jnp.array([0.0, 0.0, 3.0]), jnp.array([0.0, 2, 2])
    )
    np.testing.assert_allclose(got, [0.0, 0.0, 1.5])


def test_what_a_constant_decides_costs_no_operation():
    def names(eps):
        x = jnp.ones(3)
        return [str(e.primitive) for e in jax.make_jaxpr(lambda x: divide(x, plus(x, eps), eps))(x).eqns]

    assert names(1e-8) == ["add", "div"]
    assert "eq" in names(0.0)
    assert "add" not in names(0.0)
    assert {"add", "eq"} <= set(names(jnp.float32(1e-8)))
    assert {"add", "eq"} <= set(names(1e-40))


def test_adding_the_number_zero_keeps_the_sign_of_zero():
    assert jnp.signbit(plus(jnp.float32(-0.0), 0.0))
