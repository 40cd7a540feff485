"""Guards under fire, rates across widths, accuracy under a privacy budget.

    python benchmarks/knobs.py [--keep]

1. A run of 300 steps in which 30 gradients, drawn at random, are broken (NaN, infinity, 1,000 times too
   large), in one leaf or in all, beside the same run without: digits, AdamW, `skip_spikes`, 8 seeds.
2. The best learning rate of widths 64 and 256 on a grid of factors of 2, with `mup` from width 64 and
   without: each width is one compiled step over all rates, by vmap over `with_hyperparams`.
3. configs/digits_dp.yaml, epsilon 3 at delta 1e-5, 3 seeds.

With --keep the result is saved as results/knobs.json.
"""

import argparse
import io
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _record import about
from rich.console import Console

import jaxopt_large as jl
from jaxopt_large.data.digits import digits
from jaxopt_large.models.mlp import mlp
from jaxopt_large.train import train

_STEPS, _FAULTS, _BATCH = 300, 30, 64


def _data(seed):
    found = digits(seed=seed)
    every = [found.example(n) for n in range(found.size)]
    whole = {name: np.stack([one[name] for one in every]) for name in every[0]}
    return whole, found.validation


def _batches(whole, seed, count):
    chance = np.random.default_rng(seed)
    rows = chance.integers(0, len(whole["labels"]), (count, _BATCH))
    return [{name: x[r] for name, x in whole.items()} for r in rows]


def injections(seeds=8):
    """Final validation losses, with faults and without."""
    model = mlp(inputs=64, hidden=[64], classes=10)
    rule = jl.skip_spikes(optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(3e-3)), 6.0)

    @jax.jit
    def step(params, state, batch, factor, everywhere):
        loss, grads = jax.value_and_grad(model.loss)(params, batch)
        first = min(grads)

        def broken(name, tree):
            return jax.tree.map(lambda g: jnp.where(everywhere | (name == first), g * factor, g), tree)

        grads = {name: broken(name, tree) for name, tree in grads.items()}
        params, state = jl.apply(rule, grads, state, params)
        return params, state, loss

    found = {"clean": [], "faults": []}
    skipped = []
    for seed in range(seeds):
        whole, validation = _data(seed)
        chance = np.random.default_rng(100 + seed)
        when = set(chance.choice(np.arange(25, _STEPS), _FAULTS, replace=False).tolist())
        for name, faults in found.items():
            params = model.init(jax.random.key(seed))
            state = rule.init(params)
            for n, batch in enumerate(_batches(whole, seed, _STEPS)):
                broken = name == "faults" and n in when
                factor = chance.choice([np.nan, np.inf, 1e3]) if broken else 1.0
                params, state, _ = step(
                    params, state, batch, np.float32(factor), np.bool_(chance.random() < 0.5)
                )
            faults.append(float(model.loss(params, validation)))
            if name == "faults":
                skipped.append(int(state.skipped))
    difference = np.array(found["faults"]) - np.array(found["clean"])
    error = float(np.sqrt(sum(np.var(x, ddof=1) / seeds for x in found.values())))
    return {
        **found,
        "skipped": skipped,
        "mean difference": float(difference.mean()),
        "standard error of a difference": error,
        "in standard errors": float(difference.mean() / error),
    }


def widths():
    """Final training losses of each rate, by width, with muP and without."""
    grid = 2.0 ** np.arange(-12, -1)
    whole, _ = _data(0)

    def model_of(width):
        return mlp(inputs=64, hidden=[width, width, width], classes=10)

    def begun(width):
        params = model_of(width).init(jax.random.key(width))
        last = max(params)
        return {**params, last: jax.tree.map(jnp.zeros_like, params[last])}

    found = {}
    for name in ("mup", "plain"):
        for width in (64, 256):
            rule = jl.with_hyperparams(jl.adam, learning_rate=1.0)
            rule = jl.mup(rule, begun(64)) if name == "mup" else rule
            params, loss = begun(width), model_of(width).loss
            state = rule.init(params)
            states = jax.vmap(lambda rate, s=state: jl.set_hyperparams(s, learning_rate=rate))(
                jnp.asarray(grid, jnp.float32)
            )
            many = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(grid), *x.shape)), params)

            def one(params, state, batch, rule=rule, loss=loss):
                value, grads = jax.value_and_grad(loss)(params, batch)
                updates, state = rule.update(grads, state, params)
                return optax.apply_updates(params, updates), state, value

            step, losses = jax.jit(jax.vmap(one, in_axes=(0, 0, None))), []
            for batch in _batches(whole, 1, 60):
                many, states, value = step(many, states, batch)
                losses.append(np.asarray(value))
            last = np.nan_to_num(np.mean(losses[-10:], axis=0), nan=np.inf)
            found[f"{name} {width}"] = {
                "best": float(grid[last.argmin()]),
                "losses": [float(x) for x in last],
            }
    return {"rates": grid.tolist(), **found}


def private():
    """Validation accuracies under the budget of the configuration."""
    found = []
    for seed in range(3):
        config = jl.load("configs/digits_dp.yaml", [f"privacy.seed={seed}", f"seed={seed}"])
        with tempfile.TemporaryDirectory() as runs:
            summary = train(config, runs=runs, console=Console(file=io.StringIO()))
            told = (Path(runs) / config.name / "metrics.jsonl").read_text().splitlines()
        accuracy = [x["validation_accuracy"] for x in map(json.loads, told) if "validation_accuracy" in x][-1]
        found.append({"accuracy": accuracy, "epsilon": summary["epsilon"]})
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true")
    keep = parser.parse_args().keep
    result = {
        "about": about("jax", "jaxlib", "optax", "dp-accounting"),
        "injections": injections(),
        "widths": widths(),
        "private": private(),
    }
    fault = result["injections"]
    told = f"{fault['mean difference']:+.4f} nats, {fault['in standard errors']:+.2f} standard errors"
    print(f"{_FAULTS} faults in {_STEPS} steps: {told}")
    for name in ("mup 64", "mup 256", "plain 64", "plain 256"):
        print(f"best rate, {name}: {result['widths'][name]['best']:g}")
    print("digits, epsilon 3:", ", ".join(f"{x['accuracy']:.1%}" for x in result["private"]))
    if keep:
        path = Path(__file__).parent / "results" / "knobs.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
