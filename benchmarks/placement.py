"""What placement costs and saves: bytes per device, collectives, peak, step time.

    python benchmarks/placement.py              # 8 simulated CPU devices: all of it
    python benchmarks/placement.py --tpu        # with libtpu installed: chips that are not there, up to 4,096

Ours stands beside optax with its state replicated and beside annotations written by hand. Times are
medians of alternating rounds on this machine; simulated devices share its cores, so that only their
ratio means anything. Saved under benchmarks/results/.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxopt_large as jl

P = PartitionSpec
_ROUNDS = 15
_LAYERS = 8


def _by_hand(mesh):
    """ZeRO-1 as one writes it for one optimizer: specs for mu and nu, constraints in the step."""
    spec = NamedSharding(mesh, P(None, "data"))
    inner = optax.adamw(1e-3)

    def shard(tree):
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec) if x.ndim else x, tree)

    def update(grads, state, params):
        updates, state = inner.update(shard(grads), state, params)
        return jax.tree.map(
            lambda u: jax.lax.with_sharding_constraint(u, NamedSharding(mesh, P())), updates
        ), shard(state)

    def shardings(state):
        return jax.tree.map(lambda x: spec if x.ndim else NamedSharding(mesh, P()), state)

    return optax.GradientTransformation(inner.init, update), shardings


def _model(mesh, width, specs):
    shapes = {"up": (_LAYERS, width, 4 * width), "down": (_LAYERS, 4 * width, width)}
    params = {
        k: jax.ShapeDtypeStruct(s, jnp.float32, sharding=NamedSharding(mesh, specs[k]))
        for k, s in shapes.items()
    }

    def loss(params, x):
        def layer(x, w):
            return x + jax.nn.relu(x @ w["up"]) @ w["down"], None

        return jnp.mean(jnp.square(jax.lax.scan(layer, x, params)[0]))

    return params, loss


def _compiled(rule, shardings, params, loss, batch):
    state = jax.eval_shape(rule.init, params) if shardings else jl.abstract_state(rule, params)
    if shardings:
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings(state)
        )
    placed = jax.tree.map(lambda x: x.sharding, state)

    def step(params, state, batch):
        updates, state = rule.update(jax.grad(loss)(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    where = jax.tree.map(lambda p: p.sharding, params)
    jitted = jax.jit(step, donate_argnums=(0, 1), out_shardings=(where, placed))
    return jitted.lower(params, state, batch).compile(), state


def _contenders(mesh):
    return {
        "optax, replicated": (optax.adamw(1e-3), None),
        "by hand": _by_hand(mesh),
        "jl.zero(optax.adamw)": (jl.zero(optax.adamw(1e-3), mesh, "data", layers="*"), None),
    }


def _report(compiled, state):
    found, memory = jl.plan.collectives(compiled), compiled.memory_analysis()
    per_device = sum(
        int(np.prod(x.sharding.shard_shape(x.shape), dtype=np.int64)) * x.dtype.itemsize
        for x in jax.tree.leaves(state)
    )
    kinds = ("all-reduce", "reduce-scatter", "all-gather")
    return {
        "state_bytes_per_device": per_device,
        "peak_bytes": memory.peak_memory_in_bytes,
        "collectives": {k: found.count(k) for k in kinds},
        "collective_bytes": {k: found.bytes(k) for k in kinds},
    }


def _times(programs):
    """Median and quartiles of alternating rounds, in milliseconds."""
    seconds = {name: [] for name in programs}
    for _ in range(_ROUNDS):
        for name, (step, carry) in programs.items():
            began = time.perf_counter()
            params, state = jax.block_until_ready(step(carry["params"], carry["state"], carry["batch"]))
            seconds[name].append(time.perf_counter() - began)
            carry |= {"params": params, "state": state}
    return {
        name: {
            q: 1e3 * float(np.quantile(t[2:], p)) for q, p in (("median", 0.5), ("low", 0.25), ("high", 0.75))
        }
        for name, t in seconds.items()
    }


def _simulated():
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params, loss = _model(mesh, 256, {"up": P(), "down": P()})
    batch = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    results, programs = {}, {}
    for name, (rule, shardings) in _contenders(mesh).items():
        step, state = _compiled(rule, shardings, params, loss, batch)
        results[name] = _report(step, state)

        def zeros(tree):
            return jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), tree)

        programs[name] = (step, {"params": zeros(params), "state": zeros(state), "batch": zeros(batch)})
    for name, times in _times(programs).items():
        results[name]["step_ms"] = times
    return {"8 simulated CPU devices, 8 layers of 256x1024x2": results}


def _absent():
    from jax.experimental import topologies

    results = {}
    cases = [("v5e:2x4", (8, 1), 1024), ("v5p:8x8x8", (64, 8), 4096), ("v5p:16x16x16", (512, 8), 4096)]
    for name, sizes, width in cases:
        devices = topologies.get_topology_desc(name, platform="tpu").devices
        mesh = Mesh(np.array(devices).reshape(sizes), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
        model = "model" if sizes[1] > 1 else None
        params, loss = _model(mesh, width, {"up": P(None, None, model), "down": P(None, model)})
        batch = jax.ShapeDtypeStruct(
            (32 * sizes[0], width), jnp.float32, sharding=NamedSharding(mesh, P("data"))
        )
        contenders = _contenders(mesh)
        if model:
            contenders.pop("by hand")  # its specs are for parameters that are replicated
        chips = int(np.prod(sizes))
        for who, (rule, shardings) in contenders.items():
            began = time.perf_counter()
            report = _report(*_compiled(rule, shardings, params, loss, batch))
            report["compile_seconds"] = time.perf_counter() - began
            results.setdefault(f"{name}, {chips:,} absent chips, 8 layers of {width}x{4 * width}x2", {})[
                who
            ] = report
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tpu", action="store_true", help="compile for absent TPUs instead")
    tpu = parser.parse_args().tpu
    results = _absent() if tpu else _simulated()
    for case, rows in results.items():
        print(case)
        base = next(iter(rows.values()))
        for who, r in rows.items():
            counts = ", ".join(f"{n} {k}" for k, n in r["collectives"].items() if n)
            line = f"  {who:22} state {r['state_bytes_per_device'] / 2**20:8.1f} MiB"
            ratio = r["peak_bytes"] / base["peak_bytes"]
            line += f"  peak {r['peak_bytes'] / 2**20:8.1f} MiB ({ratio:.2f})  {counts}"
            if "step_ms" in r:
                t = r["step_ms"]
                line += f"  {t['median']:.1f} ms ({t['low']:.1f} to {t['high']:.1f})"
            print(line)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    names = ["jax", "optax", *(["libtpu"] if tpu else [])]
    record = {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores"
        + (", TPUs by their compiler only" if tpu else ""),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
        "results": results,
    }
    file = Path(__file__).parent / "results" / ("placement_tpu.json" if tpu else "placement.json")
    file.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
