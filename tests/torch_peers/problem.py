"""The problem that both sides train, and the training here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_large as jl

STEPS = 20
_NAMES = {"jl": jl, "optax": optax, "jnp": jnp}
_AVERAGES = ("ASGD", "ScheduleFree")  # whose last parameters are not those to evaluate with
_OF_MATRICES = ("Muon", "pytorch_optimizer.GaLore")
_TO_EPS = (1.0, 1e-3, 1e-9, 1e-16, 0.0)  # gradients of all sizes: each side's eps is seen, wherever it is


@functools.cache
def problem():
    """The first parameters, and the gradients of 20 steps: noise around a constant, so that rates grow."""
    r = np.random.default_rng(8)
    start = {"b": r.normal(size=5), "w": r.normal(size=(6, 10))}
    sizes = {"b": np.array(_TO_EPS), "w": 10 ** r.uniform(-1, 1, size=(6, 10))}
    grads = {
        k: sizes[k] * (r.normal(size=(STEPS, *x.shape)) + r.normal(size=x.shape)) for k, x in start.items()
    }
    return start, grads


def of(call, tree):
    """The leaves that an optimizer is given: some take matrices only."""
    return {"w": tree["w"]} if call.startswith(_OF_MATRICES) else tree


def trained_as(call, written):
    """What is kept of the training by an expression that stands for a call."""
    return _trained(written, call.startswith(_OF_MATRICES), any(name in call for name in _AVERAGES))


@functools.cache
def _trained(written, is_matrices, is_average):
    rule = eval(written, dict(_NAMES))

    def step(carry, grads):
        params, state = carry
        updates, state = rule.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    @jax.jit
    def train(params, grads):
        (last, state), seen = jax.lax.scan(step, (params, rule.init(params)), grads)
        return seen, jl.evaluation_params(state, last) if is_average else None

    start, grads = ({"w": tree["w"]} if is_matrices else tree for tree in problem())
    with jax.numpy_dtype_promotion("standard"):  # schedules of the table are plain arithmetic
        made = train(jax.tree.map(jnp.asarray, start), jax.tree.map(jnp.asarray, grads))
    return kept(*jax.tree.map(np.asarray, made))


def kept(seen, averages=None):
    """What is compared, as plain lists: the last parameters, and of steps 1 and 2 the vector and one row."""
    first, second = ({k: x[n] if x[n].ndim < 2 else x[n][0] for k, x in seen.items()} for n in (0, 1))
    parts = {"1": first, "2": second, "20": {k: x[-1] for k, x in seen.items()}}
    if averages is not None:
        parts["averages"] = averages
    return {n: {k: x.tolist() for k, x in part.items()} for n, part in parts.items()}


def apart(ours, theirs):
    """The largest difference, as a share of a leaf's largest element."""
    return max(
        float(np.max(np.abs(np.asarray(ours[n][k]) - x)) / np.max(np.abs(x)))
        for n, part in theirs.items()
        for k, x in part.items()
    )
