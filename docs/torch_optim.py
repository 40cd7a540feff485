"""Each optimizer of torch.optim as it is written here: all settings with which PyTorch tests them on CPUs.

tests/torch_peers/ has both train on the same gradients and compares the numbers.
"""

from typing import NamedTuple

_ADAFACTOR = "PyTorch takes eps**2 for the least mean square; here, as in the paper, eps is added to squares"
_RADAM = "PyTorch divides eps by sqrt(1 - b2**t), and begins above 5, not at 5"
_MUON = "PyTorch orthogonalizes in bfloat16 whatever the leaf's dtype, and takes eps for the least norm"
_LBFGS = "evaluates the loss again within a step: optax.lbfgs"
_SPARSE = "for sparse gradients, which JAX does not make"


class Written(NamedTuple):
    """How one of PyTorch's is written here."""

    here: str  # an expression of `jl`, `optax` and `jnp`; "" where there is none
    differs: str = ""  # why the numbers differ; "" where they agree to 12 digits, or there are none
    alike: tuple[str, str] | None = None  # theirs and ours with that difference taken away


TORCH_OPTIM = {
    "Adadelta()": Written("jl.adadelta(1.0)"),
    "Adadelta(lr=0.01)": Written("jl.adadelta(0.01)"),
    "Adadelta(weight_decay=0.1)": Written("jl.adadelta(1.0, weight_decay=0.1)"),
    "Adadelta(maximize=True)": Written("optax.chain(optax.scale(-1.0), jl.adadelta(1.0))"),
    "Adadelta(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.adadelta(1.0, weight_decay=0.1))"
    ),
    "Adadelta(rho=0.95, weight_decay=0.9)": Written("jl.adadelta(1.0, rho=0.95, weight_decay=0.9)"),
    "Adafactor()": Written(
        "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1)",
        _ADAFACTOR,
        (
            "Adafactor(eps=(1e-150, 0.001))",
            "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, eps=0.0)",
        ),
    ),
    "Adafactor(weight_decay=0.1, lr=0.01)": Written(
        "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, weight_decay_rate=0.01 * 0.1)",
        _ADAFACTOR,
        (
            "Adafactor(weight_decay=0.1, lr=0.01, eps=(1e-150, 0.001))",
            "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, weight_decay_rate=0.01 * 0.1, eps=0.0)",
        ),
    ),
    "Adafactor(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, weight_decay_rate=0.01 * 0.1))",
        _ADAFACTOR,
        (
            "Adafactor(weight_decay=0.1, maximize=True, eps=(1e-150, 0.001))",
            "optax.chain(optax.scale(-1.0), jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, weight_decay_rate=0.01 * 0.1, eps=0.0))",
        ),
    ),
    "Adafactor(beta2_decay=-1.0)": Written(
        "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, decay_rate=1.0)",
        _ADAFACTOR,
        (
            "Adafactor(beta2_decay=-1.0, eps=(1e-150, 0.001))",
            "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, decay_rate=1.0, eps=0.0)",
        ),
    ),
    "Adafactor(d=1.5)": Written(
        "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, clipping_threshold=1.5)",
        _ADAFACTOR,
        (
            "Adafactor(d=1.5, eps=(1e-150, 0.001))",
            "jl.adafactor(lambda t: jnp.minimum(0.01, (t + 1.0) ** -0.5), 1, clipping_threshold=1.5, eps=0.0)",
        ),
    ),
    "Adagrad()": Written("jl.adagrad(0.01, 0.0, eps=1e-10, eps_in_sqrt=False)"),
    "Adagrad(weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.adagrad(0.01, 0.0, eps=1e-10, eps_in_sqrt=False))"
    ),
    "Adagrad(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), "
        "jl.adagrad(0.01, 0.0, eps=1e-10, eps_in_sqrt=False))"
    ),
    "Adagrad(lr=0.1)": Written("jl.adagrad(0.1, 0.0, eps=1e-10, eps_in_sqrt=False)"),
    "Adagrad(initial_accumulator_value=0.1, weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.adagrad(0.01, 0.1, eps=1e-10, eps_in_sqrt=False))"
    ),
    "Adagrad(lr=0.1, lr_decay=0.5, weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), "
        "jl.adagrad(lambda t: 0.1 / (1 + 0.5 * t), 0.0, eps=1e-10, eps_in_sqrt=False))"
    ),
    "Adagrad(lr=tensor(0.001))": Written("jl.adagrad(0.001, 0.0, eps=1e-10, eps_in_sqrt=False)"),
    "Adam()": Written("jl.adam(0.001)"),
    "Adam(lr=0.01)": Written("jl.adam(0.01)"),
    "Adam(weight_decay=0.1)": Written("optax.chain(jl.add_decayed_weights(0.1), jl.adam(0.001))"),
    "Adam(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.adam(0.001))"
    ),
    "Adam(weight_decay=0.1, amsgrad=True)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.amsgrad(0.001, corrected_last=True))"
    ),
    "Adamax()": Written("jl.adamax(0.002)"),
    "Adamax(lr=0.1)": Written("jl.adamax(0.1)"),
    "Adamax(weight_decay=0.1)": Written("optax.chain(jl.add_decayed_weights(0.1), jl.adamax(0.002))"),
    "Adamax(maximize=True)": Written("optax.chain(optax.scale(-1.0), jl.adamax(0.002))"),
    "Adamax(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.adamax(0.002))"
    ),
    "AdamW()": Written("jl.adamw(0.001, weight_decay=0.01)"),
    "AdamW(lr=0.01)": Written("jl.adamw(0.01, weight_decay=0.01)"),
    "AdamW(weight_decay=0.1)": Written("jl.adamw(0.001, weight_decay=0.1)"),
    "AdamW(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.adamw(0.001, weight_decay=0.1))"
    ),
    "AdamW(weight_decay=0.1, amsgrad=True)": Written(
        "jl.amsgradw(0.001, weight_decay=0.1, corrected_last=True)"
    ),
    "ASGD()": Written("jl.asgd(0.01)"),
    "ASGD(lambd=0.1)": Written("jl.asgd(0.01, lambd=0.1)"),
    "ASGD(lr=0.02)": Written("jl.asgd(0.02)"),
    "ASGD(t0=100)": Written("jl.asgd(0.01, t0=100)"),
    "ASGD(maximize=True)": Written("optax.chain(optax.scale(-1.0), jl.asgd(0.01))"),
    "ASGD(weight_decay=0.1)": Written("jl.asgd(0.01, weight_decay=0.1)"),
    "ASGD(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.asgd(0.01, weight_decay=0.1))"
    ),
    "LBFGS()": Written("", _LBFGS),
    "LBFGS(lr=0.01)": Written("", _LBFGS),
    "LBFGS(lr=tensor(0.001))": Written("", _LBFGS),
    "LBFGS(tolerance_grad=1e-06)": Written("", _LBFGS),
    "LBFGS(line_search_fn='strong_wolfe')": Written("", _LBFGS),
    "Muon()": Written(
        "jl.muon(0.001, weight_decay=0.1)",
        _MUON,
        ("Muon() in float64", "jl.muon(0.001, weight_decay=0.1, eps=0.0)"),
    ),
    "Muon(lr=0.01)": Written(
        "jl.muon(0.01, weight_decay=0.1)",
        _MUON,
        ("Muon(lr=0.01) in float64", "jl.muon(0.01, weight_decay=0.1, eps=0.0)"),
    ),
    "Muon(lr=tensor(0.001))": Written(
        "jl.muon(0.001, weight_decay=0.1)",
        _MUON,
        ("Muon(lr=tensor(0.001)) in float64", "jl.muon(0.001, weight_decay=0.1, eps=0.0)"),
    ),
    "Muon(weight_decay=0.2)": Written(
        "jl.muon(0.001, weight_decay=0.2)",
        _MUON,
        ("Muon(weight_decay=0.2) in float64", "jl.muon(0.001, weight_decay=0.2, eps=0.0)"),
    ),
    "Muon(momentum=0.8)": Written(
        "jl.muon(0.001, weight_decay=0.1, beta=0.8)",
        _MUON,
        ("Muon(momentum=0.8) in float64", "jl.muon(0.001, weight_decay=0.1, beta=0.8, eps=0.0)"),
    ),
    "Muon(ns_steps=6)": Written(
        "jl.muon(0.001, weight_decay=0.1, ns_steps=6)",
        _MUON,
        ("Muon(ns_steps=6) in float64", "jl.muon(0.001, weight_decay=0.1, ns_steps=6, eps=0.0)"),
    ),
    "Muon(ns_coefficients=(3.4, -4.7, 2.0))": Written(
        "jl.muon(0.001, weight_decay=0.1, ns_coeffs=(3.4, -4.7, 2.0))",
        _MUON,
        (
            "Muon(ns_coefficients=(3.4, -4.7, 2.0)) in float64",
            "jl.muon(0.001, weight_decay=0.1, ns_coeffs=(3.4, -4.7, 2.0), eps=0.0)",
        ),
    ),
    "NAdam()": Written("jl.nadam(0.002, momentum_decay=0.004)"),
    "NAdam(lr=0.001)": Written("jl.nadam(0.001, momentum_decay=0.004)"),
    "NAdam(momentum_decay=0.006)": Written("jl.nadam(0.002, momentum_decay=0.006)"),
    "NAdam(weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.nadam(0.002, momentum_decay=0.004))"
    ),
    "NAdam(weight_decay=0.1, momentum_decay=0.006)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.nadam(0.002, momentum_decay=0.006))"
    ),
    "NAdam(weight_decay=0.1, momentum_decay=0.006, decoupled_weight_decay=True)": Written(
        "jl.nadamw(0.002, weight_decay=0.1, momentum_decay=0.006)"
    ),
    "NAdam(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.nadam(0.002, momentum_decay=0.004))"
    ),
    "RAdam()": Written(
        "jl.radam(0.001)",
        _RADAM,
        (
            "RAdam()",
            "optax.inject_hyperparams(jl.radam)(0.001, eps=lambda t: 1e-08 / jnp.sqrt(1 - 0.999 ** (t + 1)))",
        ),
    ),
    "RAdam(lr=0.002)": Written(
        "jl.radam(0.002)",
        _RADAM,
        (
            "RAdam(lr=0.002)",
            "optax.inject_hyperparams(jl.radam)(0.002, eps=lambda t: 1e-08 / jnp.sqrt(1 - 0.999 ** (t + 1)))",
        ),
    ),
    "RAdam(eps=1e-06)": Written(
        "jl.radam(0.001, eps=1e-06)",
        _RADAM,
        (
            "RAdam(eps=1e-06)",
            "optax.inject_hyperparams(jl.radam)(0.001, eps=lambda t: 1e-06 / jnp.sqrt(1 - 0.999 ** (t + 1)))",
        ),
    ),
    "RAdam(weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.radam(0.001))",
        _RADAM,
        (
            "RAdam(weight_decay=0.1)",
            "optax.chain(jl.add_decayed_weights(0.1), optax.inject_hyperparams(jl.radam)(0.001, eps=lambda t: 1e-08 / jnp.sqrt(1 - 0.999 ** (t + 1))))",
        ),
    ),
    "RAdam(weight_decay=0.1, decoupled_weight_decay=True)": Written(
        "jl.radam(0.001, weight_decay=0.1)",
        _RADAM,
        (
            "RAdam(weight_decay=0.1, decoupled_weight_decay=True)",
            "optax.inject_hyperparams(jl.radam)(0.001, eps=lambda t: 1e-08 / jnp.sqrt(1 - 0.999 ** (t + 1)), weight_decay=0.1)",
        ),
    ),
    "RAdam(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.radam(0.001))",
        _RADAM,
        (
            "RAdam(weight_decay=0.1, maximize=True)",
            "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), optax.inject_hyperparams(jl.radam)(0.001, eps=lambda t: 1e-08 / jnp.sqrt(1 - 0.999 ** (t + 1))))",
        ),
    ),
    "RMSprop()": Written("jl.rmsprop(0.01, 0.99, eps_in_sqrt=False)"),
    "RMSprop(lr=0.001)": Written("jl.rmsprop(0.001, 0.99, eps_in_sqrt=False)"),
    "RMSprop(weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.rmsprop(0.01, 0.99, eps_in_sqrt=False))"
    ),
    "RMSprop(maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.rmsprop(0.01, 0.99, eps_in_sqrt=False))"
    ),
    "RMSprop(weight_decay=0.1, centered=True)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.rmsprop(0.01, 0.99, eps_in_sqrt=False, centered=True))"
    ),
    "RMSprop(maximize=True, weight_decay=0.1)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.rmsprop(0.01, 0.99, eps_in_sqrt=False))"
    ),
    "RMSprop(weight_decay=0.1, centered=True, momentum=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.rmsprop(0.01, 0.99, eps_in_sqrt=False, centered=True, momentum=0.1))"
    ),
    "RMSprop(weight_decay=0.1, centered=True, momentum=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.rmsprop(0.01, 0.99, eps_in_sqrt=False, centered=True, momentum=0.1))"
    ),
    "Rprop()": Written("jl.rprop(0.01)"),
    "Rprop(lr=0.0002)": Written("jl.rprop(0.0002)"),
    "Rprop(etas=(0.5, 1.5))": Written("jl.rprop(0.01, 0.5, 1.5)"),
    "Rprop(step_sizes=(2e-06, 100))": Written("jl.rprop(0.01, min_step_size=2e-06, max_step_size=100.0)"),
    "Rprop(maximize=True)": Written("optax.chain(optax.scale(-1.0), jl.rprop(0.01))"),
    "SGD()": Written("jl.sgd(0.001)"),
    "SGD(lr=0.01)": Written("jl.sgd(0.01)"),
    "SGD(lr=tensor(0.001))": Written("jl.sgd(0.001)"),
    "SGD(weight_decay=0.5)": Written("optax.chain(jl.add_decayed_weights(0.5), jl.sgd(0.001))"),
    "SGD(momentum=0.9)": Written("jl.sgd(0.001, momentum=0.9)"),
    "SGD(weight_decay=0.1, maximize=True)": Written(
        "optax.chain(optax.scale(-1.0), jl.add_decayed_weights(0.1), jl.sgd(0.001))"
    ),
    "SGD(momentum=0.9, dampening=0.5)": Written(
        "optax.chain(optax.scale_by_schedule(lambda t: jnp.where(t == 0, 1.0, 1.0 - 0.5)), jl.sgd(0.001, momentum=0.9))"
    ),
    "SGD(momentum=0.9, weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.sgd(0.001, momentum=0.9))"
    ),
    "SGD(momentum=0.9, nesterov=True, weight_decay=0.1)": Written(
        "optax.chain(jl.add_decayed_weights(0.1), jl.sgd(0.001, momentum=0.9, nesterov=True))"
    ),
    "SparseAdam()": Written("", _SPARSE),
    "SparseAdam(lr=0.01)": Written("", _SPARSE),
    "SparseAdam(lr=tensor(0.001))": Written("", _SPARSE),
    "SparseAdam(maximize=True)": Written("", _SPARSE),
}


def by_class() -> dict[str, Written]:
    """Each of PyTorch's classes, in its default settings."""
    return {call.removesuffix("()"): row for call, row in TORCH_OPTIM.items() if call.endswith("()")}
