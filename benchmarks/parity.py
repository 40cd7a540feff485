"""Does training with state in 8 bits end at the loss of float32?

    python benchmarks/parity.py                 # some 100 runs of a minute: 1.5 hours on 2 cores
    python benchmarks/parity.py --table         # what is there so far

A transformer of 0.9 M parameters learns the bytes of Python's standard library for 300 steps, with AdamW,
Lion and momentum SGD. The learning rate of each is tuned in float32, on one seed and steps of half a
decade, and is the same for every storage. A seed decides the initial parameters and the order of the data.
Runs differ in their losses from seed to seed, so that storages are compared seed by seed.

Beside ours stand two formats written here from their formulas: the dynamic code map of bitsandbytes
(blocks of 256, float32 scales, to nearest), and FlashOptim's (groups of 32, float16 scales, softsign and
square root, to nearest). Their state is rounded to the format after each step, which gives the numbers that
codes would. At a loss scale of 1e-3 gradients are as small as a large model's; clipping, epsilon and SGD's
learning rate are scaled along, so that an optimizer which does not mind ends where it ended at 1.

Every finished run is saved at once under benchmarks/results/, and not repeated.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _record import about

import jaxopt_large as jl
from jaxopt_large.data.text import stdlib_text
from jaxopt_large.models.transformer import transformer

_STEPS, _WARMUP, _BATCH, _CONTEXT = 300, 30, 32, 64
_LAYERS, _WIDTH, _HEADS = 4, 128, 4
_SEEDS = (0, 1, 2, 3)
_SCALES = (1.0, 1e-3)
_FIRST_GUESS = {"adamw": 1e-2, "lion": 1e-3, "sgd": 1.0}
_FEWEST = 4096  # smaller leaves stay float32 in every storage
_FILE = Path(__file__).parent / "results" / "parity.json"


@dataclasses.dataclass(frozen=True)
class Run:
    rule: str
    storage: str
    loss_scale: float
    learning_rate: float
    seed: int


# --- rules and storages -------------------------------------------------------------------------------


def _rule(run):
    peak = run.learning_rate * (1 / run.loss_scale if run.rule == "sgd" else 1)
    schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, peak, _WARMUP), optax.linear_schedule(peak, 0.0, _STEPS - _WARMUP)],
        [_WARMUP],
    )
    rule = {
        "adamw": lambda: jl.adamw(
            schedule, b2=0.98, eps=1e-8 * run.loss_scale, weight_decay=0.1, mask=_matrices
        ),
        "lion": lambda: jl.lion(schedule, weight_decay=0.1, mask=_matrices),
        "sgd": lambda: jl.sgd(schedule, momentum=0.9, nesterov=True),
    }[run.rule]()
    fields = {"adamw": ("mu", "nu"), "lion": ("mu",), "sgd": ("trace",)}[run.rule]
    rule = {
        "float32": lambda: rule,
        "int8": lambda: jl.stored(rule, seed=run.seed, **{f: jl.int8() for f in fields}),
        "bitsandbytes' map": lambda: _rounded_to(rule, _dynamic),
        "FlashOptim's format": lambda: _rounded_to(rule, _companded),
    }[run.storage]()
    return optax.chain(jl.clip_by_global_norm(run.loss_scale), rule)


def _matrices(params):
    names = {"qkv", "out", "up", "down"}
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in names, params)


def _rounded_to(rule, format):
    """The rule, with its moments rounded to a format after each step."""

    def kept(path, x):
        names = [key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)]
        if x.size < _FEWEST or not {"mu", "nu", "trace"} & set(names):
            return x
        return format(x, "nu" not in names)

    def update(updates, state, params=None):
        updates, state = rule.update(updates, state, params)
        return updates, jax.tree_util.tree_map_with_path(kept, state)

    return optax.GradientTransformation(rule.init, update)


def _in_blocks(x, size):
    flat = x.reshape(-1)
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def _dynamic(x, signed):
    """Dettmers et al. 2022, arXiv:2110.02861: a code map times the largest magnitude of each 256."""
    values = _dynamic_map(signed)
    blocks = _in_blocks(x, 256)
    scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True)
    n = blocks / jnp.where(scale > 0, scale, 1)
    code = jnp.searchsorted(jnp.asarray((values[1:] + values[:-1]) / 2), n)
    return (jnp.asarray(values)[code] * scale).reshape(-1)[: x.size].reshape(x.shape)


@functools.cache
def _dynamic_map(signed):
    """256 values: in each decade below 1 twice as many as in the one below it, evenly spaced; 0 and 1."""
    found = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2 ** (decade if signed else decade + 1) + 1)
        middles = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        found += [*middles, *(-middles if signed else [])]
    assert len(found) == 256
    return np.sort(np.array(found, np.float32))


def _companded(x, signed):
    """Ortiz et al. 2026, FlashOptim: softsign or square root of each 32 over their maximum, in float16."""
    blocks = _in_blocks(x if signed else jnp.sqrt(x), 32)
    scale = jnp.max(jnp.abs(blocks), axis=1, keepdims=True).astype(jnp.float16).astype(jnp.float32)
    n = jnp.where(scale > 0, blocks / jnp.where(scale > 0, scale, 1), 0)
    if signed:
        z = jnp.clip(jnp.round(127 * 2 * n / (1 + jnp.abs(n))), -127, 127) / 127
        n = z / (2 - jnp.abs(z))
    else:
        n = jnp.clip(jnp.round(255 * n), 0, 255) / 255
    wide = n * scale if signed else jnp.square(n * scale)
    return wide.reshape(-1)[: x.size].reshape(x.shape)


# --- one run ------------------------------------------------------------------------------------------


@functools.cache
def _data():
    return stdlib_text(context=_CONTEXT, seed=0, validation_windows=1024)


def _train(run):
    """The validation loss at the end, in nats per byte."""
    began, data = time.perf_counter(), _data()
    model = transformer(vocabulary=256, layers=_LAYERS, width=_WIDTH, heads=_HEADS)
    params = model.init(jax.random.key(run.seed))
    rule = _rule(run)
    state = jax.jit(rule.init)(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        grads = jax.grad(lambda p: run.loss_scale * model.loss(p, batch))(params)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    order = np.random.default_rng(run.seed).permutation(data.size)[: _STEPS * _BATCH]
    for rows in order.reshape(_STEPS, _BATCH):
        batch = {"tokens": np.stack([data.example(int(i))["tokens"] for i in rows])}
        params, state = step(params, state, batch)
    loss = jax.jit(model.loss)
    parts = np.split(data.validation["tokens"], 8)
    final = float(np.mean([loss(params, {"tokens": part}) for part in parts]))
    return final, time.perf_counter() - began


def _prepare(cores):
    """Each process has one core of its own: less is lost than by sharing two."""
    os.sched_setaffinity(0, {cores.get()})
    os.nice(19)
    cache = Path(tempfile.gettempdir()) / "jaxopt_large_parity"
    jax.config.update("jax_compilation_cache_dir", str(cache))


# --- all runs -----------------------------------------------------------------------------------------


def _read():
    if not _FILE.exists():
        return {}
    rows = json.loads(_FILE.read_text())["runs"]
    return {Run(**{f.name: row[f.name] for f in dataclasses.fields(Run)}): row["loss"] for row in rows}


def _write(done):
    data = _data()
    record = {
        **about("jax", "optax"),
        "task": f"{_LAYERS} layers of width {_WIDTH}, context {_CONTEXT}, batch {_BATCH}, {_STEPS} steps",
        "data": data.facts,
        "table": _rows(done),
        "runs": [dataclasses.asdict(run) | {"loss": loss} for run, loss in done.items()],
    }
    _FILE.write_text(json.dumps(record, indent=1) + "\n")


def _grid(step):
    return float(f"{10 ** (step / 2):.3g}")


def _best(done, rule):
    """The best learning rate so far, and those that must still be tried for it to be an inner one."""
    losses = {
        r.learning_rate: x for r, x in done.items() if r == Run(rule, "float32", 1.0, r.learning_rate, 0)
    }
    losses = {lr: x if math.isfinite(x) else math.inf for lr, x in losses.items()}
    best = min(losses, key=losses.get) if losses else _FIRST_GUESS[rule]
    middle = round(2 * math.log10(best))
    around = [_grid(middle + k) for k in (0, -1, 1)]
    return best, [Run(rule, "float32", 1.0, lr, 0) for lr in around if lr not in losses]


def _wanted(rates):
    """Most telling first."""
    ours, peers = ("float32", "int8"), ("bitsandbytes' map", "FlashOptim's format")
    small, one = _SCALES[1], _SCALES[0]
    for pairs in (
        [(s, one) for s in ours],
        [("int8", small), *((s, scale) for s in peers for scale in (small, one))],
        [("float32", small)],
    ):
        for seed in _SEEDS:
            for rule, rate in rates.items():
                for storage, scale in pairs:
                    yield Run(rule, storage, scale, rate, seed)


def _run_all(processes):
    done = _read()
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0))[:processes]:
        cores.put(core)
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_prepare, initargs=(cores,)
    ) as pool:

        def run(runs):
            futures = {pool.submit(_train, r): r for r in runs}
            for future in concurrent.futures.as_completed(futures):
                run = futures[future]
                done[run], seconds = future.result()
                print(f"{run}: {done[run]:.4f} in {seconds:.0f} s", flush=True)
                _write(done)

        while missing := [r for rule in _FIRST_GUESS for r in _best(done, rule)[1]]:
            run(missing)
        rates = {rule: _best(done, rule)[0] for rule in _FIRST_GUESS}
        run([r for r in dict.fromkeys(_wanted(rates)) if r not in done])
    return done


def _rows(done):
    """For each rule, storage and loss scale: the mean loss, and how far from float32's, seed by seed."""
    losses = collections.defaultdict(dict)
    for run, loss in done.items():
        if run.learning_rate == _best(done, run.rule)[0]:
            losses[run.rule, run.storage, run.loss_scale][run.seed] = loss
    rows = []
    for (rule, storage, scale), found in sorted(losses.items()):
        base = losses[rule, "float32", 1.0]
        both = sorted(set(base) & set(found))
        row = {"rule": rule, "learning_rate": _best(done, rule)[0], "storage": storage, "loss_scale": scale}
        row |= {"seeds": len(found), "loss": statistics.mean(found.values())}
        if len(base) > 1 and both:
            row["float32_standard_error"] = statistics.stdev(base.values()) / math.sqrt(len(base))
            row["above_float32"] = statistics.mean(found[s] - base[s] for s in both)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true", help="train nothing, show what is there")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    done = _read() if args.table else _run_all(args.processes)
    print(f"{'rule':7} {'storage':20} {'scale':>6} {'seeds':>5} {'loss':>8} {'above float32':>14}  its error")
    for row in _rows(done):
        line = (
            f"{row['rule']:7} {row['storage']:20} {row['loss_scale']:6g} {row['seeds']:5} {row['loss']:8.4f}"
        )
        if "above_float32" in row:
            line += f" {row['above_float32']:+14.4f}  {row['float32_standard_error']:.4f}"
        print(line)


if __name__ == "__main__":
    main()
