"""What `stored` finds out about the signs of a field, held against real numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxopt_large as jl
from jaxopt_large.storage._signs import never_negative

_OPTAX = (
    *(
        "adabelief",
        "adadelta",
        "adafactor",
        "adagrad",
        "adam",
        "adamax",
        "adamaxw",
        "adamw",
        "adan",
        "amsgrad",
    ),
    *(
        "fromage",
        "lamb",
        "lars",
        "lion",
        "nadam",
        "nadamw",
        "noisy_sgd",
        "novograd",
        "radam",
        "rmsprop",
        "rprop",
    ),
    *("optimistic_gradient_descent", "sgd", "sign_sgd", "sm3", "yogi"),
)
_CONTRIB = (
    *("ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "madgrad", "momo", "momo_adam", "muon"),
    *("prodigy", "simplified_ademamix", "schedule_free_adamw", "schedule_free_sgd"),
)
_RULES = {name: getattr(optax, name) for name in _OPTAX} | {
    name: getattr(contrib, name) for name in _CONTRIB if hasattr(contrib, name)
}
_OPTIONS = {
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.9, "centered": True},
    "adafactor": {"momentum": 0.9, "min_dim_size_to_factor": 8},
    "lars": {"momentum": 0.9},
}
_NO_RATE = {"cocob", "dog", "dowg", "prodigy", "dadapt_adamw", "momo", "momo_adam", "adadelta"}


def _make(name):
    options = _OPTIONS.get(name, {})
    if name == "noisy_sgd":
        options = {"key": jax.random.key(0)}
    try:
        return _RULES[name](**options) if name in _NO_RATE else _RULES[name](1e-2, **options)
    except TypeError:
        return _RULES[name](**{"learning_rate": 1e-2, **options})


@pytest.mark.parametrize("name", _RULES)
def test_what_is_said_never_to_be_negative_is_not(name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rule = optax.with_extra_args_support(_make(name))
        r = np.random.default_rng(0)
        normal = lambda: {"w": jnp.asarray(r.normal(size=(16, 32)), jnp.float32)}  # noqa: E731
        params = normal()
        state = rule.init(params)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), (params, state)
        )
        claims = never_negative(rule, *shapes)
        extra = {"value": jnp.float32(1.0)} if name.startswith("momo") else {}
        update = jax.jit(rule.update)
        for _ in range(6):
            for (path, x), claim in zip(jax.tree_util.tree_flatten_with_path(state)[0], claims, strict=True):
                if claim and jnp.ndim(x):
                    assert np.min(np.asarray(x)) >= 0, jax.tree_util.keystr(path)
            updates, state = update(normal(), state, params, **extra)
            params = optax.apply_updates(params, updates)


def test_the_claims_are_not_empty():
    rule, params = jl.adam(1e-2), {"w": jax.ShapeDtypeStruct((16, 32), jnp.float32)}
    assert never_negative(rule, params, jax.eval_shape(rule.init, params)) == [True, False, True]


def test_a_diagonal_that_has_a_sign_is_not():
    """Sophia's `nu` is a mean of u * Hu, which may be below 0: in codes without a sign it made no numbers."""
    params = {"w": jnp.ones((16, 256))}

    def loss(params):
        return jnp.sum(jnp.cos(3.0 * params["w"]))  # of which the second derivative is below 0 in places

    rule = jl.stored(jl.sophia(1e-2), mu=jl.int8(), nu=jl.int8())
    state = rule.init(params)
    for _ in range(3):
        grads = jax.grad(loss)(params)
        updates, state = rule.update(grads, state, params, obj_fn=loss)
        params = optax.apply_updates(params, updates)
    assert bool(jnp.all(jnp.isfinite(params["w"])))
