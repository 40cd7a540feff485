"""What `step.py` and `gpu.py` measure: trees, rules, and their programs side by side."""

import functools
import importlib.util
import re
import statistics
import time

import _torch_peers as peers
import jax
import jax.numpy as jnp
import optax
from _rows import BESIDE, first_line

import jaxopt_large as jl


def gpt(layers, width, vocabulary):
    """Stacked layers, as scanned transformers have them."""
    return {
        "embed": (vocabulary, width),
        "qkv": (layers, width, 3 * width),
        "out": (layers, width, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
        "norms": (layers, 2, width),
    }


def resnet(count, unit):
    """Many small leaves: convolutions, and norms' gains and biases."""
    shapes = [(3, 3, unit, unit), (1, 1, unit, 4 * unit), (4 * unit,), (unit,)]
    return {f"{n}": shapes[n % 4] for n in range(count)}


def _int8(rule, fields, **options):
    return jl.stored(rule, **{f: jl.int8() for f in fields}, **options)


_ADAMW = {"weight_decay": 0.1}
CASES = {  # -> ours, optax's in float32, dtype of parameters and gradients
    "AdamW": (lambda: jl.adamw(1e-3, **_ADAMW), lambda: optax.adamw(1e-3, **_ADAMW), "float32"),
    "clip + AdamW": (
        lambda: optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3, **_ADAMW)),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, **_ADAMW)),
        "float32",
    ),
    "AdamW int8": (
        lambda: _int8(jl.adamw(1e-3, **_ADAMW), ("mu", "nu")),
        lambda: optax.adamw(1e-3, **_ADAMW),
        "float32",
    ),
    "AdamW int8 + split": (
        lambda: _int8(jl.adamw(1e-3, **_ADAMW), ("mu", "nu"), params=jl.split()),
        lambda: optax.adamw(1e-3, **_ADAMW),
        "bfloat16",
    ),
    "AdamW int8 + rounded": (
        lambda: _int8(jl.adamw(1e-3, **_ADAMW), ("mu", "nu"), params=jl.rounded()),
        lambda: optax.adamw(1e-3, **_ADAMW),
        "bfloat16",
    ),
    "Lion int8": (lambda: _int8(jl.lion(1e-4), ("mu",)), lambda: optax.lion(1e-4), "float32"),
    "SGD momentum int8": (
        lambda: _int8(jl.sgd(1e-2, momentum=0.9), ("trace",)),
        lambda: optax.sgd(1e-2, momentum=0.9),
        "float32",
    ),
}


def updated(rule):
    """The compatible way."""

    def step(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def applied(rule):
    """A whole step at once."""
    return lambda params, state, grads: jl.apply(rule, grads, state, params)


def _hand_written():
    """optax's AdamW between a plain decode and encode: linear int8 in blocks of 128, as users write it."""
    rule = optax.adamw(1e-3, **_ADAMW)

    def encode(x):
        blocks = x.reshape(-1, 128) if x.size % 128 == 0 else x.reshape(-1, 1)
        scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True) / 127 + 1e-30
        return jnp.round(blocks / scale).astype(jnp.int8), scale

    def decode(pair, like):
        return (pair[0].astype(jnp.float32) * pair[1]).reshape(like.shape)

    def init(params):
        state = rule.init(params)
        return jax.tree.map(lambda x: encode(x) if x.ndim else x, state)

    def step(params, state, grads):
        like = jax.eval_shape(rule.init, params)
        wide = jax.tree.map(lambda s, x: decode(x, s) if s.ndim else x, like, state)
        updates, wide = rule.update(grads, wide, params)
        return optax.apply_updates(params, updates), jax.tree.map(lambda x: encode(x) if x.ndim else x, wide)

    return init, step


def _arrays(shapes, dtype, seed):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        k: 0.02 * jax.random.normal(key, shape, jnp.dtype(dtype))
        for key, (k, shape) in zip(keys, shapes.items(), strict=True)
    }


def _bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _program(step, init, shapes, dtype):
    """What runs some steps, and what is known of it before."""
    params, grads = _arrays(shapes, dtype, 0), _arrays(shapes, dtype, 1)
    state = init(params)
    began = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    row = {
        "floor_bytes": _bytes(grads) + 2 * (_bytes(params) + _bytes(state)),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "compile_s": time.perf_counter() - began,
        "kernels": kernels_in(compiled.as_text()),
    }
    carry = [params, state]

    def run(times):
        for _ in range(times):
            carry[:] = compiled(*carry, grads)
        jax.block_until_ready(carry)

    return run, row


def kernels_in(text):
    """How many Pallas kernels there are in a program, compiled or only lowered."""
    return len(re.findall(r'(?:custom_call_target="|custom_call @)[^"(]*(?:triton|tpu_custom_call)', text))


def _rewrite(count):
    """Reads and writes `count` bytes in all, in place, as a step does: a copy of the device's memory."""
    move = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros((-(-count // 8192), 1024), jnp.float32)]  # whole words of a GPU's memory

    def run(times):
        for _ in range(times):
            held[0] = move(held[0])
        jax.block_until_ready(held)

    return run, {"floor_bytes": count, "temporary_bytes": 0}


def case(shapes, name, *, rounds=11, seconds=0.0, torch=True):
    """What one tree and rule cost, program by program.

    Args:
      shapes: the tree's.
      name: one of `CASES`.
      rounds: in each, all programs run in turn; the first two are not counted.
      seconds: how long a program runs in a round, at least; by default one step.
      torch: also PyTorch's, where it can be imported?

    Returns:
      name -> row; one with an `error` and no `ms` for a program that failed.
    """
    ours, theirs, dtype = CASES[name]
    rule, peer = ours(), theirs()
    adamw = optax.adamw(1e-3, **_ADAMW)
    steps = {
        "apply": (applied(rule), rule.init, dtype),
        "update": (updated(rule), rule.init, dtype),
        "optax, float32": (updated(peer), peer.init, "float32"),
        "optax AdamW, float32": (updated(adamw), adamw.init, "float32"),
    }
    if name == "AdamW int8":
        init, step = _hand_written()
        steps["optax + int8 by hand"] = (step, init, "float32")
    makers = {key: functools.partial(_program, s, i, shapes, kind) for key, (s, i, kind) in steps.items()}
    makers["rewrite"] = lambda: _rewrite(rows["apply"]["floor_bytes"])
    on_gpu = jax.default_backend() == "gpu"
    if torch and name in peers.TORCH:
        key, module, kind, make = peers.TORCH[name]
        if importlib.util.find_spec(module) and (on_gpu or module != "flashoptim"):
            makers[key] = functools.partial(peers.program, shapes, module, kind, make)
    programs, rows = {}, {}
    for key, make in makers.items():
        try:
            programs[key], rows[key] = make()
            programs[key](1)
        except Exception as error:  # of a peer's version, or no memory: the others go on
            programs.pop(key, None)
            rows[key] = {"error": first_line(error)}
    for key, ms in _measured(programs, rounds, seconds).items():
        rows[key] |= {"ms": ms, "GB/s": rows[key]["floor_bytes"] / ms["median"] / 1e6}
    for row in rows.values():
        for key, short in BESIDE.items():
            if "ms" in row and "ms" in rows[key]:
                row[short] = row["ms"]["median"] / rows[key]["ms"]["median"]
    return rows


def _measured(programs, rounds, seconds):
    """Medians and quartiles of the milliseconds of a step; programs run in turn."""
    steps = {}
    for name, run in programs.items():
        began = time.perf_counter()
        run(1)
        steps[name] = max(1, min(100, round(seconds / (time.perf_counter() - began))))
    times = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            began = time.perf_counter()
            run(steps[name])
            times[name].append((time.perf_counter() - began) / steps[name])
    found = {}
    for name, all_ in times.items():
        low, median, high = statistics.quantiles(all_[2:], n=4, method="inclusive")
        found[name] = {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
    return found
