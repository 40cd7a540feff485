"""What the kernels are tried on: rules, formats, dtypes and shapes, and a cover of their pairs."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType
from optax import contrib

import jaxopt_large as jl
from jaxopt_large.storage import formats

from .. import catalog

# element by element, each of another arithmetic; the catalog's others are combinations of it
_OURS = ("sgd", "adagrad", "rmsprop", "adam", "adamw", "lion", "adan", "adopt", "yogi", "ademamix", "cocob")
RULES = {  # -> rule, its fields
    **{f"jl.{case}": (case.rule, case.fields) for case in catalog.RULES if str(case) in _OURS},
    "jl.adamw": (lambda: jl.adamw(optax.cosine_decay_schedule(1e-2, 10)), ("mu", "nu")),
    "optax.sgd": (lambda: optax.sgd(1e-2, momentum=0.9), ("trace",)),
    "optax.adagrad": (lambda: optax.adagrad(1e-2), ("sum_of_squares",)),
    "optax.rmsprop": (lambda: optax.rmsprop(1e-2), ("nu",)),
    "optax.adam": (lambda: optax.adam(1e-2), ("mu", "nu")),
    "optax.adamw": (lambda: optax.adamw(optax.cosine_decay_schedule(1e-2, 10)), ("mu", "nu")),
    "optax.nadam": (lambda: optax.nadam(1e-2), ("mu", "nu")),
    "optax.lion": (lambda: optax.lion(1e-3), ("mu",)),
    "optax.adabelief": (lambda: optax.adabelief(1e-2), ("mu", "nu")),
    "optax.ademamix": (lambda: contrib.ademamix(1e-2), ("m1", "m2", "nu")),
}
FORMATS = {name: make for name, make in formats.FORMATS.items() if name != "float32"}
PARAMS = {  # -> dtype of parameters, of gradients, how they are kept
    "float32": (jnp.float32, jnp.float32, None),
    "bfloat16 gradients": (jnp.float32, jnp.bfloat16, None),
    "split": (jnp.bfloat16, jnp.bfloat16, jl.split),
    "rounded": (jnp.bfloat16, jnp.bfloat16, jl.rounded),
}
SHAPES = [(64, 128), (40, 127), (48, 129), (3, 16, 256), (2, 2, 16, 128), (2, 4096)]
AROUND = {
    "nothing": lambda rule: rule,
    "clip": lambda rule: optax.chain(jl.clip_by_global_norm(1.0), rule),
    "optax's clip": lambda rule: optax.chain(optax.clip_by_global_norm(1.0), rule),
    "skip": jl.skip_nonfinite,
    "masked": lambda rule: optax.masked(rule, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
}


def rule_of(name, kinds, kept=None, around="nothing"):
    make, fields = RULES[name]
    if isinstance(kinds, str):
        kinds = [kinds] * len(fields)
    kept = None if kept is None else kept()
    stored = jl.stored(make(), params=kept, **{f: FORMATS[k]() for f, k in zip(fields, kinds, strict=False)})
    return AROUND[around](stored)


def arrays(shape, dtype, seed, scale=1.0):
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), dtype)


def lowered_for_gpus(step, args):
    """A step with kernels for GPUs, as text; no GPU is needed."""
    with as_if_on_a_gpu():
        return jax.jit(step).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def as_if_on_a_gpu():
    try:
        from jax._src.mesh import AbstractDevice

        device = AbstractDevice("NVIDIA H100 80GB HBM3", 132, platform="gpu")
    except (ImportError, TypeError):  # JAX before 0.10 asks for none
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    )


def pairs(*factors):
    """Combinations of levels so that each pair of levels of two factors is in one (greedy)."""
    names = [list(f) for f in factors]
    open_ = {
        (i, a, j, b)
        for (i, xs), (j, ys) in itertools.combinations(enumerate(names), 2)
        for a in range(len(xs))
        for b in range(len(ys))
    }
    r, chosen = np.random.default_rng(0), []
    while open_:
        best = max(
            (tuple(int(r.integers(len(xs))) for xs in names) for _ in range(60)),
            key=lambda c: sum(
                (i, c[i], j, c[j]) in open_ for i, j in itertools.combinations(range(len(c)), 2)
            ),
        )
        hit = {(i, best[i], j, best[j]) for i, j in itertools.combinations(range(len(best)), 2)}
        if hit & open_:
            open_ -= hit
            chosen.append(tuple(xs[n] for xs, n in zip(names, best, strict=True)))
    return chosen
