"""Any tree, any rule, any order of wrappers: it works as its parts say, or is refused with the reason."""

import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import jaxopt_large as jl

from ..catalog import RULES

_GRAMMAR = re.compile(r"^[a-z_0-9. ()=,']+: .+\.$", re.DOTALL)
_SHAPES = [(), (1,), (5,), (0, 3), (4, 6), (2, 3, 4), (1, 8)]
_DTYPES = ["float32", "bfloat16", "float16"]
_CASES = {str(case): case for case in RULES if not case.notes & {"obj_fn", "value"}}
_WRAPPERS = {
    "skip": jl.skip_nonfinite,
    "clip": lambda rule: optax.chain(jl.clip_by_global_norm(1.0), rule),
    "accumulate": lambda rule: jl.accumulate(rule, 2),
    "cautious": jl.cautious,
    "decoupled": lambda rule: jl.decoupled(rule, 1e-2),
    "lookahead": lambda rule: jl.lookahead(rule, 2),
    "ema": lambda rule: jl.ema_of_params(rule, 0.9),
    "schedule_free": lambda rule: jl.schedule_free(rule, 0.1),
    "mechanic": jl.mechanic,
    "partition": lambda rule: jl.partition({"frozen*": jl.freeze(), "*": rule}),
    "bfloat16 state": lambda rule: jl.stored(rule, mu=jl.bfloat16(), nu=jl.bfloat16()),
    "rounded": lambda rule: jl.stored(rule, params=jl.rounded()),
}

_leaves = st.tuples(st.sampled_from(_SHAPES), st.sampled_from(_DTYPES))
_trees = st.recursive(
    _leaves | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
    max_leaves=4,
)
_settings = {"deadline": None, "derandomize": True, "database": None, "print_blob": False}
_slow = hypothesis.HealthCheck.too_slow


def _arrays(tree, seed, scale=1.0):
    r = np.random.default_rng(seed)

    def array(leaf):
        if leaf is None:
            return None
        shape, dtype = leaf
        return jnp.asarray(scale * r.normal(size=shape), dtype)

    return jax.tree.map(array, tree, is_leaf=lambda x: isinstance(x, tuple))


def _kinds(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(x.shape, x.dtype) for x in leaves]


def _holds(name, wrappers, tree, scale):
    rule = _CASES[name].rule()
    params, grads = ({"frozen": jnp.ones(2), "tree": _arrays(tree, seed)} for seed in (0, 1))
    grads = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
    refused = ""
    try:
        for wrapper in wrappers:
            rule = _WRAPPERS[wrapper](rule)
        state = rule.init(params)
    except (TypeError, ValueError) as error:
        refused = str(error)
    if refused:
        assert all(_GRAMMAR.match(line) for line in refused.splitlines()), refused
        return
    update = jax.jit(rule.update)
    for _ in range(2):
        updates, after = update(grads, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(grads)
        assert [u.shape for u in jax.tree.leaves(updates)] == [g.shape for g in jax.tree.leaves(grads)]
        assert all(bool(jnp.all(jnp.isfinite(u))) for u in jax.tree.leaves(updates))
        assert _kinds(after) == _kinds(state)
        state = after
    if "partition" in wrappers[-1:]:
        assert not np.any(np.asarray(updates["frozen"]))


_any_case = hypothesis.given(
    name=st.sampled_from(sorted(_CASES)),
    wrappers=st.lists(st.sampled_from(sorted(_WRAPPERS)), max_size=3, unique=True),
    tree=_trees,
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e3]),
)


@pytest.mark.filterwarnings("ignore:.*low precision.*")
@hypothesis.settings(max_examples=40, suppress_health_check=[_slow], **_settings)
@_any_case
def test_any_tree_in_any_order_of_wrappers(name, wrappers, tree, scale):
    _holds(name, wrappers, tree, scale)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*low precision.*")
@hypothesis.settings(max_examples=300, suppress_health_check=[_slow], **_settings)
@_any_case
def test_many_trees_in_any_order_of_wrappers(name, wrappers, tree, scale):
    _holds(name, wrappers, tree, scale)
