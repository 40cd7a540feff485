"""Kernels in interpret mode beside update and apply_updates, op by op, without fused multiply-adds.

A process of its own: XLA:CPU contracts products and sums where it sees both, which depends on what is
fused; `--xla_cpu_max_isa=AVX` takes that instruction away. `--xla_allow_excess_precision=false` keeps
roundings to bfloat16, and without `algsimp` a / b / c stays what it is, where XLA would make a / (b * c) of
it. Kernel compilers do none of the three.
Prints the cases that differ, and how many ran.

    python -m tests.fused.exact [share of shares]
"""

import os
import sys

os.environ["XLA_FLAGS"] = (
    "--xla_cpu_max_isa=AVX --xla_allow_excess_precision=false --xla_disable_hlo_passes=algsimp"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from jaxopt_large.fused import _kernel
from jaxopt_large.fused._step import Step, step_of
from jaxopt_large.fused.targets import TARGETS
from tests.fused import cases


def differs(name, formats, kind, shape, around, target):
    """What differs between the kernel and the rule; None: it is the same, bit for bit."""
    dtype, gradient_dtype, kept = cases.PARAMS[kind]
    rule = cases.rule_of(name, formats, kept, around)
    params = {"w": cases.arrays(shape, dtype, 0), "b": cases.arrays((8,), dtype, 1)}
    grads = {k: cases.arrays(p.shape, gradient_dtype, 2, 3.0) for k, p in params.items()}
    step = step_of(rule, {})
    # a first step, so that no field is 0; the second is compared
    params, state = jax.jit(step)(grads, rule.init(params), params)
    grads = {k: cases.arrays(p.shape, gradient_dtype, 3) for k, p in params.items()}
    args = (grads, state, params)
    taken = Step.taken(step, args)
    passes = [p for p in taken.split.passes if p.shape == shape and p.has_blocks]
    assert len(passes) == 1, (name, formats, [p.shape for p in taken.split.passes])
    (pass_,) = passes
    if (why := _kernel.why_not(pass_, TARGETS[target])) is not None:
        return why
    with jax.disable_jit():
        want = jax.tree.leaves(step(*args))
    for k, x in enumerate(jax.tree.leaves(args)):
        taken.split.graph.give(k, x)
    with jax.disable_jit():
        given = taken.split.graph.computed(pass_.inputs), taken.split.graph.computed(pass_.scalars)
    got = _kernel.kernel(pass_, taken.split.holds(pass_), *given, TARGETS[target], interpret=True)
    for k, x in zip(pass_.results, got, strict=True):
        x, y = np.asarray(x), np.asarray(want[k])
        wrong = int(np.sum(~((x == y) | ((x != x) & (y != y)))))
        if wrong:
            return f"result {k}: {wrong} of {x.size} differ"
    return None


def main(part, parts):
    blocked = [f for f in cases.FORMATS if f != "bfloat16"]
    chosen = cases.pairs(cases.RULES, blocked, cases.PARAMS, cases.SHAPES, cases.AROUND, ["tpu", "gpu"])
    chosen.append(("jl.adamw", ["bfloat16", "int8"], "float32", (64, 128), "nothing", "tpu"))
    chosen = [c for c in chosen if c[1] != "int4" or c[-1] != "gpu"]
    ran = 0
    for name, formats, kind, shape, around, target in chosen[part::parts]:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            found = differs(name, formats, kind, shape, around, target)
        ran += 1
        if found is not None:
            print("DIFFERS", name, formats, kind, shape, around, target, "->", found, flush=True)
    print("ran", ran, "of", len(chosen))


if __name__ == "__main__":
    del jnp
    main(*(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (0, 1)))
