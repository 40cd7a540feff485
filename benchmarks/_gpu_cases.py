"""What `gpu.py` runs in a process of its own, which may die: kernels against XLA, and their times.

It is given, as JSON, the phase, when to stop, what is done, and a file, to which it adds a line of JSON for
each thing that happens.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package and the tests of this checkout

import jax
import numpy as np
from _programs import case as measured
from _programs import gpt, kernels_in, resnet
from _rows import first_line

import jaxopt_large as jl
from jaxopt_large.fused import _kernel
from jaxopt_large.fused._step import Step, step_of
from jaxopt_large.fused.targets import TARGETS
from tests.fused import cases

_SHAPES = {  # in the eyes of a kernel
    "masked": (129, 300),
    "few rows": (7, 640),
    "masked, stacked": (3, 65, 257),
    "whole tiles": (64, 2048),
    "one narrow block": (50, 100),
    "tall": (2048, 128),
    "four axes": (2, 2, 16, 384),
}
_FIRST = [  # rule, formats, kind of parameters, shape, what is around it
    ("jl.adamw", "int8", "float32", "masked", "nothing"),
    ("jl.adamw", "int8", "float32", "whole tiles", "nothing"),
    ("jl.adamw", "int8", "split", "masked", "nothing"),
    ("jl.adamw", "int8", "split", "whole tiles", "nothing"),
    ("jl.adamw", "int8", "rounded", "masked", "nothing"),
    ("jl.adamw", "int8", "rounded", "whole tiles", "nothing"),
    ("jl.adamw", "int8", "float32", "masked, stacked", "clip"),
    ("jl.adamw", "int8", "split", "few rows", "skip"),
    ("jl.lion", "int8", "float32", "masked", "nothing"),
    ("jl.sgd", "int8", "rounded", "masked, stacked", "nothing"),
    ("jl.adamw", "float8", "float32", "masked", "nothing"),
    ("jl.adamw", "float8", "split", "whole tiles", "clip"),
    ("jl.adamw", "bfloat16, int8", "float32", "masked", "nothing"),
    ("jl.rmsprop", "int8", "bfloat16 gradients", "one narrow block", "nothing"),
    ("jl.adagrad", "int8", "float32", "tall", "nothing"),
    ("jl.lion", "float8", "rounded", "four axes", "skip"),
    ("optax.adamw", "int8", "float32", "masked", "optax's clip"),
    ("optax.ademamix", "int8", "bfloat16 gradients", "masked", "masked"),
]
_REHEARSED = [_FIRST[n] for n in (6, 7, 15)]
_STEPS = 3  # compared, each from XLA's state
# The share of a result's numbers that may be further from XLA's than roundings make them: where a number
# lies on the edge between two codes, or two values of bfloat16, the last bit of float32 decides.
_ON_EDGES = 1e-3

_TREES = {
    "one leaf, 134 M": {"w": (8192, 16384)},
    "GPT, 124 M": gpt(12, 768, 50304),
    "300 leaves": resnet(300, 128),
}
_TOYS = {"a small leaf": {"w": (256, 512)}, "8 leaves": resnet(8, 32)}
_TIMED = [  # by importance
    ("one leaf, 134 M", "AdamW int8"),
    ("GPT, 124 M", "AdamW int8"),
    ("one leaf, 134 M", "AdamW int8 + split"),
    ("one leaf, 134 M", "AdamW int8 + rounded"),
    ("one leaf, 134 M", "clip + AdamW"),
    ("one leaf, 134 M", "AdamW"),
    ("GPT, 124 M", "AdamW int8 + split"),
    ("GPT, 124 M", "clip + AdamW"),
    ("300 leaves", "AdamW int8"),
    ("300 leaves", "clip + AdamW"),
    ("GPT, 124 M", "AdamW int8 + rounded"),
    ("GPT, 124 M", "AdamW"),
    ("300 leaves", "AdamW int8 + split"),
    ("300 leaves", "AdamW"),
    ("one leaf, 134 M", "Lion int8"),
    ("one leaf, 134 M", "SGD momentum int8"),
]
_GUESS = {"correctness": 10, "speed": 25}  # seconds of the first case


def _correctness(options):
    chosen = _FIRST + cases.pairs(cases.RULES, ("int8", "float8"), cases.PARAMS, _SHAPES, cases.AROUND)
    if options["rehearse"]:
        chosen = _REHEARSED
    return {" | ".join(case): functools.partial(_compared, case, options) for case in chosen}


def _compared(case, options):
    """A kernel beside XLA, from the same states."""
    name, formats, kind, shape, around = case
    dtype, gradient, kept = cases.PARAMS[kind]
    rule = cases.rule_of(name, formats.split(", ") if ", " in formats else formats, kept, around)
    params = {"w": cases.arrays(_SHAPES[shape], dtype, 0), "small": cases.arrays((7, 128), dtype, 1)}
    state = rule.init(params)
    grads = [_gradients(params, gradient, n) for n in range(_STEPS)]
    if around == "skip":
        grads[-1]["small"] *= np.nan
    args = (grads[0], state, params)
    passes = [p for p in Step.taken(step_of(rule, {}), args).split.passes if p.has_blocks]
    if all(reasons := [_kernel.why_not(p, TARGETS["gpu"]) for p in passes]):
        return {"status": "no kernel", "why": reasons[0]}
    steps = {k: functools.partial(jl.apply, rule, kernels=k) for k in ("gpu", "xla", "interpret")}
    fast = jax.jit(steps["interpret" if options["rehearse"] else "gpu"]).lower(*args).compile()
    slow = jax.jit(steps["xla"]).lower(*args).compile()
    text = cases.lowered_for_gpus(steps["gpu"], args) if options["rehearse"] else fast.as_text()
    found = {"status": "right", "kernels": kernels_in(text), "unequal": 0.0}
    if found["kernels"] != len(passes):
        return found | {"status": "wrong", "why": f"{found['kernels']} kernels for {len(passes)} passes"}
    for n, g in enumerate(grads):
        got, want = (step(g, state, params) for step in (fast, slow))
        wrong, unequal = _differences(got, want)
        found["unequal"] = max(found["unequal"], unequal)
        if wrong:
            return found | {"status": "wrong", "why": f"step {n + 1}: {wrong}"}
        params, state = want
    return found


def _gradients(params, dtype, n):
    """Of all sizes, zeros among them."""
    grads = {
        k: cases.arrays(p.shape, dtype, (n, p.ndim, p.size), 3.0 if n == 0 else 1.0)
        for k, p in params.items()
    }
    return grads | {"w": grads["w"].at[..., 0, :].set(0).at[..., 1, :].multiply(1e-6)}


def _differences(got, want):
    """What differs by more than roundings, or None; and the largest share of a result that is not equal."""
    wrong, most = None, 0.0
    for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        if x.dtype == np.float32:
            least = (
                0.0 if "scales" in jax.tree_util.keystr(path) else 1e-6
            )  # of a difference of large numbers
            near = np.isclose(x, y, rtol=2e-5, atol=least, equal_nan=True)
        else:
            near = np.abs(_ordered(x) - _ordered(y)) <= 1
        share = np.mean(~near) if near.size else 0.0
        if share > _ON_EDGES and wrong is None:
            where = tuple(int(n[0]) for n in np.nonzero(np.atleast_1d(~near)))
            one, other = np.atleast_1d(x)[where], np.atleast_1d(y)[where]
            wrong = (
                f"{np.sum(~near)} of {x.size} of {jax.tree_util.keystr(path)} are far off, "
                f"the first at {where}: {one} where XLA has {other}"
            )
        most = max(most, float(np.mean(x != y)) if x.size else 0.0)
    return wrong, most


def _ordered(x):
    """Numbers as integers in their order: neighbors differ by 1."""
    if np.issubdtype(x.dtype, np.integer) or x.dtype == np.bool_:
        return x.astype(np.int64)
    bits = x.view(np.dtype(f"int{8 * x.dtype.itemsize}")).astype(np.int64)
    return np.where(bits < 0, -(bits & (2 ** (8 * x.dtype.itemsize - 1) - 1)), bits)


def _speed(options):
    trees, timed, how = _TREES, _TIMED, {"rounds": 12, "seconds": 0.03, "torch": options["torch"]}
    if options["rehearse"]:
        trees, how = _TOYS, {"rounds": 4, "torch": False}
        timed = [("a small leaf", "AdamW int8"), ("8 leaves", "clip + AdamW")]

    def programs(tree, name):
        return {"status": "timed", "programs": measured(trees[tree], name, **how)}

    chosen = {f"{tree}: {name}": functools.partial(programs, tree, name) for tree, name in timed}
    return {"a crash": _crash, "an error": lambda: 1 / 0, **chosen} if options["rehearse"] else chosen


def _crash():
    """As a compiler does it."""
    print("F1127 LLVM Fatal Error while rehearsing", file=sys.stderr, flush=True)
    os.abort()


def main(options):
    def say(event, **more):
        with open(options["events"], "a") as file:
            file.write(json.dumps({"event": event, **more}) + "\n")

    if not options["rehearse"] and jax.default_backend() != "gpu":
        return say("refused", why=f"JAX finds no GPU here: its platform is {jax.default_backend()}")
    device = jax.devices()[0]
    todo = {"correctness": _correctness, "speed": _speed}[options["phase"]](options)
    say("device", device=device.device_kind, compute_capability=getattr(device, "compute_capability", None))
    took: dict[str, list[float]] = {}  # by tree
    for key in (key for key in todo if key not in options["done"]):
        left = options["until"] - time.time()
        alike = took.setdefault(key.split(":")[0] if options["phase"] == "speed" else "", [])
        if left < (need := max(alike[-5:], default=_GUESS[options["phase"]])):
            say("skipped", key=key, why=f"{max(left, 0):.0f} s left, and it may take {need:.0f}")
            continue
        say("began", key=key)
        began = time.time()
        try:
            found = todo[key]()
        except Exception as error:
            found = {"status": "failed", "why": first_line(error)}
        alike.append(time.time() - began)
        say("done", key=key, found=found | {"seconds": round(alike[-1], 2)})
    return say("end")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
