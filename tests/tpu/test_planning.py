"""Plans beside the TPU compiler: peaks, and what is sent."""

import os

import pytest

pytest.importorskip("libtpu", reason="`make tpu` installs the TPU compiler")
os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxopt_large as jl
from jaxopt_large.train import budget as budgets
from jaxopt_large.train import plan_of
from jaxopt_large.train.compiled import compared, compiled_step

from ..train.runs import CONFIGS

pytestmark = pytest.mark.tpu_compile
_MODEL = "model={kind: transformer, layers: 4, width: 1024, heads: 8, vocabulary: 8192, dtype: bfloat16, remat: true}"
_ZERO = [_MODEL, "data={kind: text, context: 1024}", "train.batch=64", "placement.mesh={data: 16}"]
_FOUR = ["train.batch=128", "train.accumulate=4"]
_FSDP = [*_ZERO, "placement.fsdp=data", "placement.layers=layers/*"]
_BOTH = [
    *_FSDP,
    "placement.mesh={data: 4, model: 4}",
    'placement.params={"*qkv": [null, null, null, model], "*up": [null, null, model], '
    '"*out|*down": [null, model], embed: [model], head: [null, model]}',
]
_RUNS = {
    "ZeRO-1": ("stdlib_gpt", _ZERO),
    "ZeRO-2": ("stdlib_gpt", [*_ZERO, *_FOUR]),
    "deferred": ("stdlib_gpt", [*_ZERO, *_FOUR, "train.accumulation=deferred"]),
    "FSDP": ("stdlib_gpt", _FSDP),
    "FSDP x TP": ("stdlib_gpt", _BOTH),
    "Muon": ("stdlib_gpt_muon", _ZERO),
    "Muon, FSDP x TP": ("stdlib_gpt_muon", _BOTH),
}
# a sum of which each device keeps a part can be a reduce-scatter or an all-reduce, a transposition an
# all-to-all or permutes: which, no plan can tell
_EITHER = [("all-gather",), ("reduce-scatter", "all-reduce"), ("all-to-all", "collective-permute")]


def _step(config):
    with jax.numpy_dtype_promotion("standard"):  # JAX's own derivative of attention in bfloat16 asks for it
        return compiled_step(config, "v5e:4x4")


@pytest.mark.parametrize("name", _RUNS)
def test_a_run_on_16_v5e(name):
    """The peak within 10 %; what is sent by kind, count and bytes."""
    file, overrides = _RUNS[name]
    config = jl.load(CONFIGS / f"{file}.yaml", overrides)
    plan, step = plan_of(config, chip="v5e"), _step(config)
    peak, sent, both = compared(plan, step).of("peak"), jl.plan.collectives(step), "x" in name
    # of so small a model the compiler frees one layer's hidden values earlier than planned: 40 of 235 MiB
    assert peak.planned == pytest.approx(peak.compiled, rel=0.18 if name == "FSDP" else 0.1)
    for kinds in _EITHER:
        planned = [sum(of(kind) for kind in kinds) for of in (plan.collectives.count, plan.collectives.bytes)]
        compiled = [sum(of(kind) for kind in kinds) for of in (sent.arrays, sent.bytes)]
        # the odd ones, of a few bytes: of what loops add up some is summed in the loop and some after it
        assert planned[0] == pytest.approx(compiled[0], abs=2 if both and "all-reduce" in kinds else 0)
        assert planned[1] == pytest.approx(compiled[1], abs=2**14)


@pytest.mark.parametrize(
    ("name", "overrides", "share"),
    [
        ("ZeRO-1", ["model.remat=false"], 0.5),
        ("ZeRO-1", [], 0.85),
        ("ZeRO-1", ["placement.zero=null"], 0.6),
        ("ZeRO-2", ["train.accumulate=2"], 0.8),
        ("FSDP x TP", ["model.remat=false"], 0.4),
        ("Muon", [], 0.85),
    ],
)
def test_a_budget_is_never_refused(name, overrides, share):
    """What the choice takes stays below the budget by the compiler's account too."""
    file, others = _RUNS[name]
    config = jl.load(CONFIGS / f"{file}.yaml", [*others, *overrides])
    budget = int(plan_of(config, chip="v5e").device_bytes * share)
    choice = budgets.within(config, budget, chip="v5e")
    assert choice.config is not None
    assert choice.changes
    assert _step(choice.config).memory_analysis().peak_memory_in_bytes <= budget


@pytest.mark.parametrize("stored", [False, True], ids=["float32", "int8, split"])
@pytest.mark.parametrize("specs", ["zero", "fsdp"])
def test_a_large_optimizer_step(specs, stored):
    """Stacks of 24 x 4,096 x 4,096: no changes of full size, parameters sent once, layer by layer."""
    devices = topologies.get_topology_desc("v5p:4x4x4", platform="tpu").devices
    mesh = Mesh(np.array(devices).reshape(16, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    spec = P(None, "data", "model") if specs == "fsdp" else P(None, None, "model")
    shape = (24, 4096, 4096)
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for name in "abcd"
    }
    rule = optax.chain(jl.clip_by_global_norm(1.0), jl.adamw(1e-3))
    rule = jl.stored(rule, params=jl.split(), mu=jl.int8(), nu=jl.int8()) if stored else rule
    rule = jl.zero(rule, mesh, "data", layers="*")
    state = jl.abstract_state(rule, params)
    places = jax.tree.map(lambda x: x.sharding, (params, state))

    def step(params, state, grads):
        return jl.apply(rule, grads, state, params)

    made = jax.jit(step, donate_argnums=(0, 1), out_shardings=places).lower(params, state, params).compile()
    sent = jl.plan.collectives(made)
    local = 2 * 4 * int(np.prod(shape)) // 4  # the parameters, in bfloat16, of one device
    assert sent.bytes("all-gather") == (0 if specs == "fsdp" else local)
    assert sent.bytes("all-reduce") < 2**12
    assert made.memory_analysis().temp_size_in_bytes < local / 6  # shares, not arrays
