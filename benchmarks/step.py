"""What a step costs: `jl.apply` beside optax, beside `update`, and beside the same bytes rewritten.

    python benchmarks/step.py                   # 12 minutes on 2 CPU cores, with small trees

Runs on CPU, GPU and TPU; on the last two the trees have their true sizes. Each tree and rule is one set of
programs that run in turn (A B C A B C ...), every buffer donated. Milliseconds are medians, with quartiles;
GB/s counts the floor, which is gradient, parameter and state read once and the last two written once;
`rewrite` reads and writes as many bytes in place, with no arithmetic to speak of. Beside them, where they can
be imported, torch's fused AdamW (float32), bitsandbytes' 8-bit AdamW, and on GPU FlashOptim's AdamW, on the
same tree. First, how long 1,000 leaves of 10 shapes take to trace and compile, in caches that are empty.
Saved as results/step-PLATFORM.json.
"""

import functools
import importlib
import importlib.util
import json
import os
import statistics
import time
from pathlib import Path

if importlib.util.find_spec("libtpu") is None and importlib.util.find_spec("jax_cuda12_plugin") is None:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import optax
from _record import about

import jaxopt_large as jl

_PLATFORM = jax.default_backend()
_SMALL = _PLATFORM == "cpu"
_ROUNDS = 11  # the first two are not counted


def _gpt(layers, width, vocabulary):
    """Stacked layers, as scanned transformers have them."""
    return {
        "embed": (vocabulary, width),
        "qkv": (layers, width, 3 * width),
        "out": (layers, width, width),
        "up": (layers, width, 4 * width),
        "down": (layers, 4 * width, width),
        "norms": (layers, 2, width),
    }


def _resnet(count, unit):
    """Many small leaves: convolutions, and norms' gains and biases."""
    shapes = [(3, 3, unit, unit), (1, 1, unit, 4 * unit), (4 * unit,), (unit,)]
    return {f"{n}": shapes[n % 4] for n in range(count)}


_TREES = (
    {"one leaf, 16 M": {"w": (4096, 4096)}, "GPT, 17 M": _gpt(4, 512, 8192), "300 leaves": _resnet(300, 64)}
    if _SMALL
    else {
        "one leaf, 134 M": {"w": (8192, 16384)},
        "GPT, 124 M": _gpt(12, 768, 50304),
        "GPT, 1.3 B": _gpt(24, 2048, 50304),
        "300 leaves": _resnet(300, 128),
        "300 leaves' bytes in one": {
            "w": (sum(9 if n % 4 == 0 else 4 if n % 4 == 1 else 0 for n in range(300)) * 128, 128)
        },
    }
)


def _int8(rule, fields, **options):
    return jl.stored(rule, **{f: jl.int8() for f in fields}, **options)


_ADAMW = {"weight_decay": 0.1}
_CASES = {  # -> ours, optax's in float32, dtype of parameters and gradients
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


def _updated(rule):
    def step(params, state, grads):
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


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
    params, grads = _arrays(shapes, dtype, 0), _arrays(shapes, dtype, 1)
    state = init(params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, grads).compile()
    floor = _bytes(grads) + 2 * (_bytes(params) + _bytes(state))
    carry = [params, state]

    def run():
        carry[:] = jax.block_until_ready(compiled(*carry, grads))

    return run, floor, compiled.memory_analysis().temp_size_in_bytes


def _rewrite(count):
    """A program that reads and writes `count` bytes in all, in place, as a step does."""
    move = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(count // 8, jnp.float32)]

    def run():
        held[0] = jax.block_until_ready(move(held[0]))

    return run


_TORCH = {  # what PyTorch has for a case: name, module, dtype of parameters and gradients, how it is made
    "AdamW": (
        "torch AdamW fused, float32",
        "torch",
        "float32",
        lambda torch, params: torch.optim.AdamW(params, lr=1e-3, fused=True),
    ),
    "AdamW int8": (
        "bitsandbytes AdamW, 8 bits",
        "bitsandbytes",
        "float32",
        lambda bitsandbytes, params: bitsandbytes.optim.AdamW8bit(params, lr=1e-3),
    ),
    "AdamW int8 + split": (
        "FlashOptim AdamW, 24 bits of master",
        "flashoptim",  # 0.1.4
        "bfloat16",
        lambda flashoptim, params: flashoptim.FlashAdamW(params, lr=1e-3, master_weight_bits=24),
    ),
}


def _torch(shapes, module, dtype, make):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count())
    kind = getattr(torch, dtype)
    params = [torch.zeros(s, device=device, dtype=kind, requires_grad=True) for s in shapes.values()]
    for p in params:
        p.grad = torch.full_like(p, 0.01)
    optimizer = make(importlib.import_module(module), params)

    def run():
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _measured(programs):
    seconds = {name: [] for name in programs}
    for _ in range(_ROUNDS):
        for name, run in programs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    found = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times[2:], n=4)
        found[name] = {"median": 1e3 * median, "low": 1e3 * low, "high": 1e3 * high}
    return found


def _case(tree, name):
    shapes = _TREES[tree]
    ours, theirs, dtype = _CASES[name]
    rule, peer = ours(), theirs()
    programs, rows = {}, {}
    apply = functools.partial(jl.apply, rule)
    steps = {
        "apply": (lambda p, s, g: apply(g, s, p), rule.init, dtype),
        "update": (_updated(rule), rule.init, dtype),
        "optax, float32": (_updated(peer), peer.init, "float32"),
        "optax AdamW, float32": (_updated(optax.adamw(1e-3, **_ADAMW)), optax.adamw(1e-3).init, "float32"),
    }
    if name == "AdamW int8":
        init, step = _hand_written()
        steps["optax + int8 by hand"] = (step, init, "float32")
    for key, (step, init, kind) in steps.items():
        programs[key], floor, temporaries = _program(step, init, shapes, kind)
        rows[key] = {"floor_bytes": floor, "temporary_bytes": temporaries}
    programs["rewrite"] = _rewrite(rows["apply"]["floor_bytes"])
    rows["rewrite"] = {"floor_bytes": rows["apply"]["floor_bytes"], "temporary_bytes": 0}
    if name in _TORCH:
        key, module, kind, make = _TORCH[name]
        if importlib.util.find_spec(module) and (_PLATFORM == "gpu" or module != "flashoptim"):
            programs[key] = _torch(shapes, module, kind, make)
            rows[key] = {"floor_bytes": 0, "temporary_bytes": 0}
    for key, ms in _measured(programs).items():
        rows[key] |= {"ms": ms, "GB/s": rows[key]["floor_bytes"] / ms["median"] / 1e6}
    for row in rows.values():
        row["to rewrite"] = row["ms"]["median"] / rows["rewrite"]["ms"]["median"]
        row["to optax AdamW"] = row["ms"]["median"] / rows["optax AdamW, float32"]["ms"]["median"]
        row["to optax"] = row["ms"]["median"] / rows["optax, float32"]["ms"]["median"]
    return rows


def _compile_times():
    params = {f"p{n}": jnp.ones((32 * (n % 10 + 1), 256)) for n in range(1000)}
    ours, theirs = _CASES["clip + AdamW"][0](), _CASES["clip + AdamW"][1]()
    apply = {
        "apply": (ours, functools.partial(jl.apply, ours)),
        "apply, optax's rule": (theirs, functools.partial(jl.apply, theirs)),
    }
    steps = {"optax": (theirs, _updated(theirs))}
    steps |= {k: (rule, lambda p, s, g, f=f: f(g, s, p)) for k, (rule, f) in apply.items()}
    found = {name: [] for name in steps}
    jax.config.update("jax_enable_compilation_cache", False)
    for _ in range(3):
        for name, (rule, step) in steps.items():
            state = jax.eval_shape(rule.init, params)
            jax.clear_caches()  # as in a new process
            began = time.perf_counter()
            traced = jax.jit(lambda *a, step=step: step(*a)).trace(params, state, params)
            middle = time.perf_counter()
            traced.lower().compile()
            found[name].append((middle - began, time.perf_counter() - middle))
    return {
        name: {
            "trace_s": statistics.median(t for t, _ in times),
            "compile_s": statistics.median(c for _, c in times),
        }
        for name, times in found.items()
    }


def main() -> None:
    results = {}
    results["1,000 leaves of 10 shapes, clip + AdamW"] = times = _compile_times()
    for name, row in times.items():
        print(f"  {name:28} trace {row['trace_s']:.2f} s, compile {row['compile_s']:.2f} s")
    for tree in _TREES:
        for name in _CASES:
            rows = results[f"{tree}: {name}"] = _case(tree, name)
            _save(results)
            print(f"{tree}: {name}")
            for key, row in rows.items():
                ms = row["ms"]
                print(
                    f"  {key:30} {ms['median']:8.2f} ms ({ms['low']:.2f} to {ms['high']:.2f})"
                    f"  {row['GB/s']:6.1f} GB/s {row['to rewrite']:5.2f} x rewrite"
                    f" {row['to optax']:5.2f} x optax"
                    f" {row['to optax AdamW']:5.2f} x its AdamW  {row['temporary_bytes'] / 2**20:.1f} MiB",
                    flush=True,
                )
    _save(results)


def _save(results) -> None:
    """Also in between, so that a run that is cut off leaves what it has."""
    record = {**about("jax", "optax"), "device": jax.devices()[0].device_kind, "results": results}
    file = Path(__file__).parent / "results" / f"step-{_PLATFORM}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
