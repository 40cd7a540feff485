"""Counters go where their moments go."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxopt_large as jl


def _stepped(rule, params, steps):
    state = rule.init(params)
    for _ in range(steps):
        _, state = rule.update(params, state, params)
    return state


_GROUPS = {"head": {"w": jnp.ones((8, 16))}, "body": {"w": jnp.ones((8, 16))}}


def test_moments_go_on_with_their_count_where_groups_part_and_come_together():
    whole, parted = jl.adamw(1e-2), jl.partition({"head*": jl.adamw(1e-2), "*": jl.adamw(1e-2)})
    for one, other in ((whole, parted), (parted, whole)):
        state = jl.convert(_stepped(one, _GROUPS, 3), one, other, _GROUPS)
        got, _ = other.update(_GROUPS, state, _GROUPS)
        want, _ = one.update(_GROUPS, _stepped(one, _GROUPS, 3), _GROUPS)
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6)


def test_moments_without_a_count_do_not_go_where_they_are_counted():
    own, other = jl.rmsprop(1e-2), jl.adamw(1e-2)
    with pytest.raises(ValueError, match="convert: the old state has 0 fields 'count', the new one 1"):
        jl.convert(_stepped(own, _GROUPS, 3), own, other, _GROUPS)


def test_moments_of_two_ages_do_not_come_together():
    parted, whole = jl.partition({"head*": jl.adamw(1e-2), "*": jl.adamw(1e-2)}), jl.adamw(1e-2)
    young, old = _stepped(parted, _GROUPS, 1), _stepped(parted, _GROUPS, 3)
    mixed = young._replace(inner_states={**young.inner_states, "head*": old.inner_states["head*"]})
    with pytest.raises(ValueError, match="convert: moments that were counted apart come together, "):
        jl.convert(mixed, parted, whole, _GROUPS)


def test_moments_take_their_own_count_along_where_globs_change():
    before = jl.partition({"head*": jl.adamw(1e-2), "*": jl.adamw(1e-2)})
    after = jl.partition({"body*": jl.adamw(1e-2), "*": jl.adamw(1e-2)})
    young, old = _stepped(before, _GROUPS, 2), _stepped(before, _GROUPS, 5)
    state = young._replace(inner_states={**young.inner_states, "head*": old.inner_states["head*"]})
    got, report = jl.convert(state, before, after, _GROUPS, report=True)
    counts = {glob: int(optax.tree_utils.tree_get(x, "count")) for glob, x in got.inner_states.items()}
    assert (counts, report.new) == ({"body*": 2, "*": 5}, ())


def test_several_counters_of_one_state():
    """Every one of them that is wrong is named, and none of them outlives what it counts."""
    several = optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation()
    parted = jl.partition({"head*": several, "*": several})
    with jax.numpy_dtype_promotion("standard"):
        young, old = _stepped(parted, _GROUPS, 2), _stepped(parted, _GROUPS, 5)
    mixed = young._replace(inner_states={**young.inner_states, "head*": old.inner_states["head*"]})
    with pytest.raises(ValueError, match="come together") as caught:
        jl.convert(mixed, parted, several, _GROUPS)
    assert len(str(caught.value).splitlines()) == 2
