"""Which rule learns most in 300 steps? Matrix rules beside tuned AdamW, on text that is always at hand.

    python benchmarks/quality.py                # hours on 2 cores; finished runs are kept
    python benchmarks/quality.py --forget soap  # its runs, after a change of the rule or of its settings here
    python benchmarks/quality.py --table        # what is there so far
    python benchmarks/quality.py --plot         # docs/quality.png
    python benchmarks/quality.py --first-order  # the rules of `_first_order.py`: 0.23 M, 2 seeds

Decoders of 0.23 M and 0.86 M parameters, as GPT-2 has them (`_gpt.py`), learn the bytes of Python's standard
library: 4 layers, context 64, batch 32, warm-up of a tenth and a linear decay to 0, gradients clipped to 1,
weight decay 0.1 on matrices (Lion: 1; SGD: none; Scion's is in its constraint). The learning rate of each
rule is tuned on seed 0, in steps of a factor of 3, until both neighbors are worse; then it is run on all
seeds. AdamW runs for 600 steps too. A seed decides the first parameters and the order of the data; the loss
is that of the validation files after the last step.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import multiprocessing
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import _first_order
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _gpt import gpt
from _record import about

import jaxopt_large as jl
from jaxopt_large.data.text import stdlib_text

_BATCH, _CONTEXT, _LAYERS, _WINDOWS = 32, 64, 4, 512
_WIDTHS = {"0.23M": 64, "0.86M": 128}
_SEEDS = (0, 1, 2, 3)
_FILE = Path(__file__).parent / "results" / "quality.json"
_PICTURE = Path(__file__).parents[1] / "docs" / "quality.png"
_MATRICES = "*qkv|*out|*up|*down"
_ROLES = {"layers/attn/qkv": "layers in (3 out)", "layers/*": "layers in out"}


def _adamw(rate, **more):
    return jl.adamw(rate, b2=0.98, weight_decay=0.1, mask=_MATRICES, **more)


def _scaled(rate, ratio):
    return lambda count: ratio * rate(count)


def _matrix_rule(make, ratio, **settings):
    """A rule of matrices; all other leaves have AdamW at `ratio` times its learning rate."""

    def rule(rate):
        other = jl.adamw(_scaled(rate, ratio), b2=0.98)
        return make(rate, weight_decay=0.1, roles=_ROLES, other=other, **settings)

    return rule


def _chain(rate):
    links = [
        jl.scale_by_soap(b2=0.98, refresh=5, roles=_ROLES),
        jl.orthogonalize("polar_express", factor=lambda m, n: 0.2 * math.sqrt(max(m, n)), roles=_ROLES),
        jl.normalize_outputs(roles=_ROLES),
    ]
    other = jl.adamw(_scaled(rate, 1.0), b2=0.98)
    return jl.matrix_chain(*links, learning_rate=rate, weight_decay=0.1, other=other)


RULES = {  # name -> learning rate to begin with, rule
    "adamw": (5e-3, _adamw),
    "sgd": (0.3, lambda rate: jl.sgd(rate, momentum=0.9, nesterov=True)),
    "lion": (2e-3, lambda rate: jl.lion(rate, weight_decay=1.0, mask=_MATRICES)),
    "muon": (3e-2, _matrix_rule(jl.muon, 0.3)),
    "normuon": (3e-2, _matrix_rule(jl.normuon, 1.0)),
    "soap": (1e-2, _matrix_rule(jl.soap, 1.0, b2=0.98, refresh=5)),
    "shampoo": (6e-3, _matrix_rule(jl.shampoo, 1.0, refresh=5)),
    "kron": (6e-3, _matrix_rule(jl.kron, 3.0)),
    "dion": (2e-2, _matrix_rule(jl.dion, 0.3, rank=0.5)),
    "scion": (3e-3, lambda rate: _scion(rate)),
    "soap > orthogonalize > normalize": (1e-2, _chain),
}


_MATRIX_RULES = tuple(RULES)
_VARIANTS = (" int8", " optax")
_REST = {**_first_order.RULES, **_first_order.IN_8_BITS, **_first_order.IN_OPTAX}
RULES |= {name: made for name, made in _REST.items() if name not in RULES}


def _scion(rate):
    other = jl.adamw(_scaled(rate, 6.0), b2=0.98)
    return jl.scion(rate, radius=20.0, roles=_ROLES, other=other)


@dataclasses.dataclass(frozen=True)
class Run:
    size: str
    rule: str
    steps: int
    learning_rate: float
    seed: int


@functools.cache
def _data():
    return stdlib_text(context=_CONTEXT, seed=0, validation_windows=_WINDOWS)


@functools.cache
def _model(size):
    width = _WIDTHS[size]
    return gpt(width=width, layers=_LAYERS, heads=width // 16, context=_CONTEXT)


@functools.cache
def _trained(size, name, steps):
    """(peak learning rate, key, batches) -> losses of all steps and of the validation files."""
    (init, loss_of), make = _model(size), RULES[name][1]
    warmup = steps // 10
    validation = jnp.asarray(_data().validation["tokens"])

    def run(peak, key, batches):
        def rate(count):
            rise, fall = (count + 1) / warmup, (steps - count) / (steps - warmup)
            return peak * jnp.minimum(1.0, jnp.minimum(rise, fall))

        rule = optax.chain(jl.clip_by_global_norm(1.0), make(rate))

        def step(carry, tokens):
            params, state = carry
            loss, grads = jax.value_and_grad(loss_of)(params, tokens)
            more = {"value": loss, "obj_fn": lambda p: loss_of(p, tokens)}  # what some rules ask for
            updates, state = rule.update(grads, state, params, **more)
            return (optax.apply_updates(params, updates), state), loss

        params = init(key)
        (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), batches)
        return losses, loss_of(params, validation)

    return jax.jit(run)


def _batches(steps, seed):
    order = np.random.default_rng(seed).permutation(_data().size)[: steps * _BATCH]
    return np.stack([_data().example(int(i))["tokens"] for i in order]).reshape(steps, _BATCH, -1)


@contextlib.contextmanager
def _alone():
    """No other process reads or writes the file meanwhile."""
    with open(f"{_FILE}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read():
    return json.loads(_FILE.read_text()) if _FILE.exists() else {"runs": []}


def _key(run):
    return tuple(run[field.name] for field in dataclasses.fields(Run))


def _done(run, found):
    return next((r for r in found["runs"] if _key(r) == dataclasses.astuple(run)), None)


def _run(run):
    """The validation loss; a run that is there is not repeated."""
    with _alone():
        kept = _done(run, _read())
    if kept is None:
        start = time.perf_counter()
        batches = _batches(run.steps, run.seed)
        losses, loss = _trained(run.size, run.rule, run.steps)(
            jnp.float32(run.learning_rate), jax.random.key(run.seed), batches
        )
        loss = float(loss) if math.isfinite(float(loss)) else 99.0
        means = np.asarray(losses).reshape(-1, 10).mean(1)
        means = np.where(np.isfinite(means), means, 99.0)
        made = {
            "loss": round(loss, 4),
            "curve": [round(float(x), 4) for x in means],
            "commit": about()["commit"],
        }
        kept = dataclasses.asdict(run) | made
        with _alone():
            found = _read()
            found["runs"].append(kept)
            found |= about("jax", "optax")
            found["data"] = _data().facts
            _FILE.write_text(json.dumps(found))
        print(f"{run}: {loss:.4f} in {time.perf_counter() - start:.0f} s", flush=True)
    return kept["loss"]


def _tuned(size, name, steps):
    """The best learning rate on seed 0: both neighbors on the grid are worse; a variant's is the rule's."""
    for variant in _VARIANTS:
        name = name.removesuffix(variant)
    rate = RULES[name][0]
    losses = {}

    def loss(power):
        if power not in losses:
            losses[power] = _run(Run(size, name, steps, _rounded(rate * 3.0**power), 0))
        return losses[power]

    best = 0
    while True:
        better = min((best - 1, best, best + 1), key=loss)
        if better == best:
            return _rounded(rate * 3.0**best)
        best = better


def _study(study):
    size, name, steps, seeds = study
    rate = _tuned(size, name, steps)
    for seed in seeds:
        _run(Run(size, name, steps, rate, seed))


def _on_one_core(cores):
    """So narrow a model is no faster on two."""
    os.sched_setaffinity(0, {cores.get()})


def _rounded(x):
    return float(f"{x:.3g}")


def _rows(seeds=_SEEDS):
    found = [r for r in _read()["runs"] if r["seed"] in seeds]
    groups = {}
    for r in found:
        groups.setdefault((r["size"], r["rule"], r["steps"]), {}).setdefault(r["learning_rate"], []).append(r)
    for (size, name, steps), rates in groups.items():
        rate, runs = max(
            rates.items(), key=lambda item: (len(item[1]), -statistics.mean(r["loss"] for r in item[1]))
        )
        losses = [r["loss"] for r in runs]
        curve = np.mean([r["curve"] for r in runs], axis=0)
        yield size, name, steps, rate, losses, curve


def table():
    print("| parameters | rule | steps | learning rate | validation loss | spread | seeds |")
    print("|---|---|---|---|---|---|---|")
    for size, name, steps, rate, losses, _ in sorted(
        _rows(), key=lambda row: (row[0], statistics.mean(row[4]))
    ):
        spread = max(losses) - min(losses)
        mean = statistics.mean(losses)
        print(f"| {size} | {name} | {steps} | {rate:g} | {mean:.3f} | {spread:.3f} | {len(losses)} |")


def first_order_table():
    """All rules of 0.23 M parameters on the first two seeds, each beside its variants."""
    means = {}
    for size, name, steps, rate, losses, _ in _rows(seeds=(0, 1)):
        if (size, steps) == ("0.23M", 300) and len(losses) == 2:
            means[name] = (rate, statistics.mean(losses), max(losses) - min(losses))
    print("| rule | learning rate | validation loss | between seeds | int8 state | optax |")
    print("|---|---|---|---|---|---|")
    for name, (rate, loss, spread) in sorted(means.items(), key=lambda item: item[1][1]):
        if name.endswith(_VARIANTS):
            continue
        others = (means.get(name + variant) for variant in _VARIANTS)
        beside = (f"{other[1] - loss:+.3f}" if other else "" for other in others)
        print(f"| {name} | {rate:g} | {loss:.3f} | {spread:.3f} | {' | '.join(beside)} |")


_ELEMENTWISE = {"adamw": "-", "sgd": "--", "lion": ":"}


def plot():
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}
    )
    distinct = [c for n, c in enumerate(plt.cm.tab10.colors) if n != 7]  # grey is AdamW's
    colors = dict(zip((n for n in _MATRIX_RULES if n not in _ELEMENTWISE), distinct, strict=False))
    sizes = sorted({row[0] for row in _rows()})
    fig, axes = plt.subplots(
        1, len(sizes), figsize=(6.4 * len(sizes), 4), layout="constrained", squeeze=False
    )
    for ax, size in zip(axes[0], sizes, strict=True):
        for _, name, steps, _, losses, curve in sorted(
            (row for row in _rows() if row[0] == size and row[1] in _MATRIX_RULES),
            key=lambda row: statistics.mean(row[4]),
        ):
            twice = steps > 300
            ax.plot(
                10 * np.arange(1, len(curve) + 1),
                curve,
                linestyle=_ELEMENTWISE.get(name, "-"),
                color=colors.get(name, "#aaa" if twice else "#222"),
                label=f"{statistics.mean(losses):.2f} {name}{', 600 steps' if twice else ''}",
            )
        ax.set(xlabel="step", title=f"{size[:-1]} M parameters", xlim=(0, None), ylim=(None, 3.2))
        ax.legend(
            frameon=False,
            fontsize=8,
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            title="validation loss at the end",
            title_fontsize=8,
            alignment="left",
        )
    axes[0, 0].set_ylabel("training loss, nats per byte")
    fig.savefig(_PICTURE, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", action="store_true")
    parser.add_argument("--forget", nargs="*", default=[])
    parser.add_argument("--sizes", nargs="*", default=list(_WIDTHS))
    parser.add_argument("--rules", nargs="*", default=list(_MATRIX_RULES))
    parser.add_argument("--seeds", type=int, default=len(_SEEDS))
    parser.add_argument("--first-order", action="store_true")
    args = parser.parse_args()
    if args.first_order:
        args.sizes, args.seeds = ["0.23M"], 2
        args.rules = [name for name in _REST if name not in _MATRIX_RULES]
    if args.forget:
        with _alone():
            found = _read()
            found["runs"] = [r for r in found["runs"] if r["rule"] not in args.forget]
            _FILE.write_text(json.dumps(found))
    show = first_order_table if args.first_order else table
    if args.table or args.plot:
        return show() if args.table else plot()
    studies = [
        (size, name, steps, _SEEDS[: args.seeds])
        for size in args.sizes
        for name in args.rules
        for steps in ((300, 600) if name == "adamw" else (300,))
    ]
    processes = multiprocessing.get_context("spawn")
    cores = processes.Queue()
    for core in os.sched_getaffinity(0):
        cores.put(core)
    pool = concurrent.futures.ProcessPoolExecutor(
        cores.qsize(), processes, initializer=_on_one_core, initargs=(cores,)
    )
    with pool:
        list(pool.map(_study, studies))
    return show()


if __name__ == "__main__":
    main()
