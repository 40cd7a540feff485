"""First-order rules as `quality.py` tries them: name -> learning rate to begin with, rule of a schedule.

Each has the settings of its paper but for what the problem asks of all: b2 of 0.98 where Adam's would be
0.999, weight decay of 0.1 on matrices where the rule has any. "int8" keeps every field that is like the
parameters in 8 bits, but for copies of parameters. "optax" is optax's rule of that name: there for the three
whose updates are not ours to a rounding (tests/contracts/test_numbers.py has them all).
"""

import fnmatch

import jax
import optax

import jaxopt_large as jl

MATRICES = "*qkv|*out|*up|*down"
_DECAYED = {"weight_decay": 0.1, "mask": MATRICES}
_ADAM = {"b2": 0.98, **_DECAYED}
_ROLES = {"layers/attn/qkv": "layers in (3 out)", "layers/*": "layers in out"}
_FEWER = {"roles": _ROLES, "weight_decay": 0.1, "b2": 0.98, "rank": 16, "update_proj_gap": 50}

_SETTINGS = {
    "gradient_descent": (0.5, {}),
    "sgd": (0.3, {"momentum": 0.9, "nesterov": True}),
    "optimistic_gradient_descent": (0.3, {}),
    "noisy_sgd": (0.5, {"eta": 1e-8}),
    "asgd": (0.5, {}),
    "adagrad": (0.03, {"initial_accumulator_value": 0.0}),
    "adadelta": (3.0, {"rho": 0.98}),
    "rmsprop": (2e-3, {"decay": 0.98, "eps_in_sqrt": False, "bias_correction": True}),
    "adam": (5e-3, {"b2": 0.98}),
    "adamw": (5e-3, _ADAM),
    "nadamw": (5e-3, _ADAM),
    "radam": (5e-3, _ADAM),
    "amsgradw": (5e-3, _ADAM),
    "adamaxw": (5e-3, _ADAM),
    "adabelief": (5e-3, _ADAM),
    "yogi": (1.5e-2, _ADAM),
    "adan": (5e-3, _DECAYED),
    "adopt": (5e-3, _ADAM),
    "ademamix": (2e-3, {**_ADAM, "b3": 0.99, "alpha": 2.0}),
    "simplified_ademamix": (5e-4, {**_ADAM, "b1": 0.9, "alpha": 1.0}),
    "laprop": (5e-3, _ADAM),
    "mars": (5e-3, {**_ADAM, "b1": 0.9}),
    "stable_adamw": (5e-3, _ADAM),
    "adam_mini": (5e-3, _ADAM),
    "optimistic_adam_v2": (3e-3, {"b2": 0.98}),
    "adafactor": (0.05, {"min_dim_size_to_factor": 32, "momentum": 0.9}),
    "came": (2e-3, {**_ADAM, "b3": 0.99}),
    "sm3": (0.3, {}),
    "lion": (2e-3, {"weight_decay": 1.0, "mask": MATRICES}),
    "sign_sgd": (1e-3, {"weight_decay": 1.0, "mask": MATRICES}),
    "signum": (1e-3, {"weight_decay": 1.0, "mask": MATRICES}),
    "lamb": (1.5e-2, _ADAM),
    "lars": (10.0, {"weight_decay": 1e-4}),
    "novograd": (5e-3, {"b2": 0.98, "weight_decay": 1e-3}),
    "fromage": (1.5e-2, {}),
    "madgrad": (1.5e-2, {}),
    "sophia": (3e-3, {**_DECAYED, "weight_decay_mask": MATRICES}),
    "cocob": (1.0, {}),
    "dog": (1.0, {}),
    "dowg": (1.0, {}),
    "dadapt_adamw": (1.0, {"betas": (0.9, 0.98)}),
    "prodigy": (1.0, {"betas": (0.9, 0.98), "weight_decay": 0.1}),
    "galore": (1e-2, _FEWER),
    "apollo": (1e-2, _FEWER),
}
_SETTINGS["sophia"][1].pop("mask")
# those of the rules' fields that 8 bits are for: no copies of parameters
_IN_8_BITS = {
    "sgd": ("trace",),
    "adan": ("m", "v", "n", "g"),
    "ademamix": ("m1", "m2", "nu"),
    "simplified_ademamix": ("m", "n"),
    "amsgradw": ("mu", "nu", "nu_max"),
    "mars": ("mu", "nu", "previous_gradient"),
    "adadelta": ("e_g", "e_x"),
    "adagrad": ("sum_of_squares",),
    "rmsprop": ("nu",),
    "lars": ("trace",),
    "madgrad": ("grad_sum_sq", "s"),
    "prodigy": ("exp_avg", "exp_avg_sq"),
    "dadapt_adamw": ("exp_avg", "exp_avg_sq"),
    **dict.fromkeys(("lion", "signum", "came", "adam_mini", "novograd", "adafactor"), ("mu",)),
    "sm3": ("nu",),
}
_MU_AND_NU = (
    "nadamw",
    "radam",
    "adamaxw",
    "adabelief",
    "yogi",
    "adopt",
    "laprop",
    "stable_adamw",
    "lamb",
    "adamw",
    "sophia",
)
_IN_8_BITS |= dict.fromkeys(_MU_AND_NU, ("mu", "nu"))


def _made(name, rate, fields=()):
    rule = getattr(jl, name)(rate, **_SETTINGS[name][1])
    return jl.stored(rule, **dict.fromkeys(fields, jl.int8())) if fields else rule


RULES = {name: (rate, lambda r, n=name: _made(n, r)) for name, (rate, _) in _SETTINGS.items()}
IN_8_BITS = {
    f"{name} int8": (RULES[name][0], lambda r, n=name, f=fields: _made(n, r, f))
    for name, fields in _IN_8_BITS.items()
}


def _mask(params):
    """`MATRICES`, as optax has it."""

    def is_decayed(path, _):
        name = "/".join(str(key.key) for key in path)
        return any(fnmatch.fnmatch(name, glob) for glob in MATRICES.split("|"))

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def _yogi_of_optax(rate):
    decay = optax.add_decayed_weights(0.1, _mask)
    return optax.chain(optax.scale_by_yogi(b2=0.98), decay, optax.scale_by_learning_rate(rate))


IN_OPTAX = {
    "noisy_sgd optax": (RULES["noisy_sgd"][0], lambda r: optax.noisy_sgd(r, eta=1e-8, key=1)),
    "yogi optax": (RULES["yogi"][0], _yogi_of_optax),
    "adan optax": (RULES["adan"][0], lambda r: optax.adan(r, weight_decay=0.1, mask=_mask)),
}
