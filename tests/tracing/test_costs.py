"""What a traced function costs on a mesh, beside what can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxopt_large._partition import entries
from jaxopt_large.tracing.costs import costs_of
from jaxopt_large.tracing.layouts import reshaped

_MESH = AbstractMesh((4, 2), ("data", "model"))
_SIZES = dict(_MESH.shape)


def _costs(function, *given, wanted=None, **options):
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in given]
    closed = jax.make_jaxpr(function)(*arrays)
    ins = [tuple(entries(spec, len(shape))) for shape, _, spec in given]
    outs = [None] * len(closed.jaxpr.outvars) if wanted is None else wanted
    return costs_of(closed, ins, outs, _SIZES, **options)


def _on(x, *spec):
    return jax.lax.with_sharding_constraint(x, NamedSharding(_MESH, P(*spec)))


def _sent(costs):
    return sorted((s.kind, s.axes, s.bytes, s.rounds) for s in costs.sent)


_F32 = jnp.float32


def test_a_product_owes_a_sum_over_what_divides_both():
    found = _costs(lambda x, w: x @ w, ((8, 16), _F32, P(None, "model")), ((16, 32), _F32, P("model")))
    assert _sent(found) == [("all-reduce", ("model",), 8 * 32 * 4, 1)]
    assert found.flops == 2 * 8 * 16 * 32 / 2
    assert found.results[0].dims == ((), ())


def test_a_sum_that_is_wanted_divided_is_scattered():
    def product(x, w):
        return _on(x @ w, "model", None)

    given = ((8, 16), _F32, P(None, "model")), ((16, 32), _F32, P("model"))
    assert _sent(_costs(product, *given)) == [("reduce-scatter", ("model",), 8 * 32 * 4, 1)]
    # CPUs have none
    assert _sent(_costs(product, *given, scatters=False)) == [("all-reduce", ("model",), 8 * 32 * 4, 1)]


def test_sums_that_are_added_up_are_done_once():
    def products(x, w, v):
        return _on(x @ w + x @ v, "model", None)

    given = ((8, 16), _F32, P(None, "model")), ((16, 32), _F32, P("model")), ((16, 32), _F32, P("model"))
    assert _sent(_costs(products, *given)) == [("reduce-scatter", ("model",), 8 * 32 * 4, 1)]


def test_weights_are_gathered_where_they_are_used_and_once():
    def twice(x, w):
        whole = _on(w, None, None)
        return x @ whole + jnp.sin(x) @ _on(w, None, None)

    found = _costs(twice, ((64, 16), _F32, P("data")), ((16, 32), _F32, P("data")))
    assert _sent(found) == [("all-gather", ("data",), 16 * 32 * 4, 1)]
    assert found.results[0].dims == (("data",), ())


def test_one_axis_cannot_divide_two_dimensions():
    """The batch and the weight are divided by `data`: the smaller is gathered."""
    found = _costs(lambda x, w: x @ w, ((64, 16), _F32, P("data")), ((16, 32), _F32, P(None, "data")))
    assert _sent(found) == [("all-gather", ("data",), 16 * 32 * 4, 1)]


def test_loops_multiply():
    def layers(x, ws):
        return jax.lax.scan(lambda x, w: (x @ _on(w, None, None), None), x, ws)[0]

    found = _costs(layers, ((64, 16), _F32, P("data")), ((5, 16, 16), _F32, P(None, "data")))
    assert _sent(found) == [("all-gather", ("data",), 16 * 16 * 4, 5)]
    assert found.flops == 5 * 2 * 64 * 16 * 16 / 4
    assert {s.loops for s in found.sent} == {1}


def test_an_embedding_that_is_divided_by_rows_owes_a_sum():
    def looked_up(table, tokens):
        return table[tokens]

    found = _costs(looked_up, ((64, 16), _F32, P("model")), ((8,), jnp.int32, P("data")))
    assert [(k, a) for k, a, _, _ in _sent(found)] == [("all-reduce", ("model",))]


def test_what_stands_beside_what_is_alive_at_once():
    n = 2**10

    def chain(x, w):
        for _ in range(4):
            x = jnp.tanh(x @ w) * 2.0  # what works element by element has no buffer of its own
        return x

    found = _costs(chain, ((n, n), _F32, P()), ((n, n), _F32, P()))
    assert found.alive == 2 * 4 * n * n  # a product, and the one that it is made from

    def kept(x, w):
        return sum(jnp.tanh(x * float(k)) @ w for k in range(3))

    assert _costs(kept, ((n, n), _F32, P()), ((n, n), _F32, P())).alive <= 3 * 4 * n * n


def test_a_backward_pass_keeps_what_the_forward_pass_made():
    layers, n = 6, 128

    def loss(ws, x):
        return jnp.sum(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0])

    found = _costs(jax.grad(loss), ((layers, n, n), _F32, P()), ((512, n), _F32, P("data")))
    stacks = layers * (512 // 4) * n * 4
    assert found.alive >= 2 * stacks  # what goes in, and what tanh gave
    assert [(s.kind, s.bytes * s.rounds) for s in found.sent if s.bytes > 4] == [
        ("all-reduce", layers * n * n * 4)
    ]


def test_what_a_loop_makes_of_its_constants_is_made_before_it():
    def blocks(x, w):
        def one(total, part):
            whole = _on(w.astype(jnp.bfloat16), None, None)
            return total + jnp.sum(part.astype(jnp.bfloat16) @ whole), None

        return jax.lax.scan(one, 0.0, x)[0]

    found = _costs(blocks, ((5, 64, 16), _F32, P(None, "data")), ((16, 32), _F32, P("data")))
    gathers = [s for s in found.sent if s.kind == "all-gather"]
    assert [(s.bytes, s.rounds, s.loops) for s in gathers] == [(16 * 32 * 2, 1, 0)]
    assert found.alive >= 16 * 32 * 2  # and held until the loop ends


def test_what_is_taken_in_a_narrower_dtype_is_sent_in_it():
    def product(x, w):
        return x @ _on(w, None, None).astype(jnp.bfloat16)

    found = _costs(product, ((64, 16), jnp.bfloat16, P("data")), ((16, 32), _F32, P("data")))
    assert _sent(found) == [("all-gather", ("data",), 16 * 32 * 2, 1)]

    def both(x, w):
        whole = _on(w, None, None)
        return x @ whole.astype(jnp.bfloat16), whole

    found = _costs(both, ((64, 16), jnp.bfloat16, P("data")), ((16, 32), _F32, P("data")))
    assert _sent(found) == [("all-gather", ("data",), 16 * 32 * 4, 1)]


@pytest.mark.parametrize("scatters", [True, False])
def test_what_a_loop_adds_up_is_summed_after_it(scatters):
    """The gradient of a head, over blocks of positions; compilers for CPUs sum in the loop."""

    def loss(w, x):
        return jax.lax.scan(lambda total, part: (total + jnp.sum(jnp.sin(part @ w)), None), 0.0, x)[0]

    given = ((16, 32), _F32, P()), ((5, 64, 16), _F32, P(None, "data"))
    found = _costs(jax.grad(loss), *given, wanted=[(("data",), ())], scatters=scatters)
    sums = [(s.kind, s.bytes, s.rounds) for s in found.sent if s.bytes > 4]
    size = 16 * 32 * 4
    assert sums == ([("reduce-scatter", size, 1)] if scatters else [("all-reduce", size, 5)])


def test_a_part_that_is_written_into_zeros_stays_owed():
    def parts(x, w):
        return jax.lax.dynamic_update_slice(jnp.zeros((8, 64)), x @ w, (0, 0))

    found = _costs(parts, ((8, 16), _F32, P(None, "model")), ((16, 32), _F32, P("model")))
    assert _sent(found) == [("all-reduce", ("model",), 8 * 64 * 4, 1)]


def test_of_two_operands_that_is_gathered_which_leaves_the_result_as_it_is_wanted():
    """The smaller one is the weight; but then the result would have to be exchanged."""

    def hidden(x, w):
        return _on(x @ w, None, "model")

    found = _costs(hidden, ((64, 16), _F32, P("model")), ((16, 32), _F32, P(None, "model")))
    assert _sent(found) == [("all-gather", ("model",), 64 * 16 * 4, 1)]


def test_fast_memory_holds_what_lives_shortly():
    n = 2**10

    def chain(x, w):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return x

    given = ((n, n), _F32, P()), ((n, n), _F32, P())
    whole = _costs(chain, *given).alive
    assert _costs(chain, *given, fast=4 * n * n).alive == whole - 4 * n * n
    assert _costs(chain, *given, fast=4 * n * n - 1).alive == whole  # no array fits


def test_results_in_the_place_of_inputs_cost_nothing():
    def product(x, w):
        return (x @ w) @ w

    given = ((64, 64), _F32, P()), ((64, 64), _F32, P())
    assert _costs(product, *given).alive == 2 * 64 * 64 * 4
    assert _costs(product, *given, donated=True).alive == 64 * 64 * 4


_DIVIDED = ((512, 256), _F32, P("data", "model"))


@pytest.mark.parametrize(
    ("function", "sums"),
    [
        (lambda x: x / jnp.sum(x, -1, keepdims=True), 1),
        (lambda x: x * jnp.mean(x, -1, keepdims=True), 1),
        (lambda x: x - jnp.mean(x, -1, keepdims=True), 1),
        (jax.nn.softmax, 2),
    ],
    ids=["quotient", "product", "difference", "softmax"],
)
def test_what_rows_are_worked_on_with_is_summed_first(function, sums):
    assert _sent(_costs(function, _DIVIDED)) == [("all-reduce", ("model",), 512 // 4 * 4, 1)] * sums


def test_a_sum_is_sent_once_and_as_the_smaller_one():
    found = _costs(lambda x, y: y / jnp.sum(x), _DIVIDED, ((64, 64), _F32, P()))
    assert _sent(found) == [("all-reduce", ("data", "model"), 4, 1)]

    def normalized(x):
        return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)

    found = _costs(normalized, ((4096, 64), _F32, P("data")))
    assert sum(s.bytes for s in found.sent) <= 3 * 64 * 4

    def gated(x, w):
        y = x @ w
        return y * jax.nn.sigmoid(y)

    given = ((8, 16), _F32, P(None, "model")), ((16, 32), _F32, P("model"))
    assert _sent(_costs(gated, *given)) == [("all-reduce", ("model",), 8 * 32 * 4, 1)]


def test_the_branch_that_costs_most_counts():
    def branches(w, y):
        return jax.lax.cond(jnp.sum(y) > 0, lambda y: (y @ w) @ w, lambda y: y, y)

    found = _costs(branches, ((64, 64), _F32, P()), ((128, 64), _F32, P("data")))
    assert found.flops == 2 * 2 * 128 * 64 * 64 / 4
    assert _sent(found) == [("all-reduce", ("data",), 4, 1)]


def test_a_block_that_is_called_twice_counts_twice():
    n, size = 1024, 1024 * 1024 * 4

    @jax.jit
    def block(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ jax.lax.sort(w)), None), x, None, length=3)[0]

    given = ((n, n), _F32, P()), ((n, n), _F32, P()), ((64, n), _F32, P())
    assert _costs(lambda a, b, x: block(b, block(a, x)), *given).alive >= 2 * size
    assert _costs(lambda a, b, x: block(a, x), *given).alive < 1.5 * size


def test_what_works_element_by_element_on_a_loops_constants_is_held():
    n = 1024

    def loop(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ jnp.sin(w)), None), x, None, length=3)[0]

    assert _costs(loop, ((n, n), _F32, P()), ((64, n), _F32, P())).alive >= 4 * n * n

    def narrow(w, x):
        return jax.lax.scan(lambda h, _: (h @ w.astype(jnp.bfloat16), None), x, None, length=3)[0]

    found = _costs(narrow, ((n, n), _F32, P()), ((64, n), jnp.bfloat16, P()))
    assert 2 * n * n <= found.alive < 3 * n * n


def test_what_does_not_run_costs_nothing():
    def none(w, x):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=0)[0]

    given = ((64, 64), _F32, P()), ((8, 64), _F32, P())
    assert _costs(none, *given).flops == 0

    def unused(w, x):
        jax.debug.print("{}", x.sum())
        del w
        return x + 1.0

    assert _costs(unused, *given).flops == 0
    assert _costs(lambda w, x: (x @ w, x)[1], *given).flops == 0


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x: jnp.cumsum(x, 0), ["all-gather"]),
        (lambda x: x[::-1], ["all-gather"]),
        (lambda x: jnp.cumsum(x, 1), []),
        (lambda x: jnp.concatenate([x, x * 2.0]), ["all-to-all"]),
        (lambda x: jnp.concatenate([x, x * 2.0], 1), []),
        (lambda x: jnp.split(x, 2), ["all-to-all"]),
    ],
)
def test_work_along_a_divided_dimension_is_sent_for(function, kinds):
    assert [s.kind for s in _costs(function, ((64, 16), _F32, P("data"))).sent] == kinds


def test_mapped_axes():
    def inside(x):
        return jax.lax.psum(x, "data"), jax.lax.all_to_all(x, "data", 0, 0, tiled=True)

    run = jax.shard_map(inside, mesh=_MESH, in_specs=P("data"), out_specs=(P(), P("data")), check_vma=False)
    found = _costs(run, ((64, 8), _F32, P("data")))
    assert _sent(found) == [
        ("all-reduce", ("data",), 16 * 8 * 4, 1),
        ("all-to-all", ("data",), 16 * 8 * 4, 1),
    ]


@pytest.mark.parametrize(
    ("dims", "old", "new", "expected"),
    [
        ((("a",), ()), (8, 6), (48,), (("a",),)),
        ((("a",), ()), (8, 6), (2, 4, 6), (("a",), (), ())),
        (((), ("a",)), (8, 6), (8, 2, 3), ((), ("a",), ())),
        (((), ("a",)), (8, 6), (48,), ((),)),  # parts of it would lie apart
        ((("a",),), (8,), (1, 8), ((), ("a",))),
        ((("a",), ()), (8, 3), (3, 8), ((), ())),
    ],
)
def test_reshapes(dims, old, new, expected):
    assert reshaped(dims, old, new, {"a": 2}) == expected
