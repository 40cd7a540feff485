"""Which of optax's own tests assert what we do not want, and why; which of the others are slow."""

import re

NO_LINK = "a decay of 0 is no link of the chain; injected it is a hyperparameter, and has its link"
NO_MATRIX = "where no leaf is a matrix, a rule of matrices says so"

# a pattern over module, test and what it is run with: the reason
EXCEPTIONS = {
    r"^alias_test-test_explicit_dtype-bfloat16-None": "moments are float32 whatever the parameters': a mean in bfloat16 loses small gradients",
    r"^alias_test-test_explicit_dtype-complex64-(bfloat16|float32)": "momentum of complex parameters is complex: a real dtype would lose its imaginary part",
    r"^_schedule_free_test-test_explicit_dtype-bfloat16-None": "`z` is float32 whatever the parameters'",
    r"can_be_wrapped_in_inject_hyperparams-(adabelief|adadelta|radam|sign_sgd|signum|yogi)$": NO_LINK,
    r"can_be_wrapped_in_inject_hyperparams-(adopt|cocob|madgrad|schedule_free_adamw)-": NO_LINK,
    r"can_be_wrapped_in_inject_hyperparams-(muon|galore)": "a leaf of three dimensions needs a role",
    r"can_be_wrapped_in_inject_hyperparams-sophia": "`update_interval` is a whole number when the rule is made",
    r"^_common_test-.*-(muon|galore)-None-None(-True|-False|-b?float\d+|-_setup_(parabola|rosenbrock)-.*)?$": NO_MATRIX,
    r"test_lion_invalid_mode_raises": "an unknown mode is refused when the rule is made, not in its update",
    r"^lookahead_test": "the slow parameters are kept in the state: the loop has the fast ones alone",
    r"^_sam_test": "sam takes a distance and a function for the gradient, no second rule",
    r"^_galore_test-.*(dimension_number|3d)": "`roles` say how leaves are read, not dimension numbers",
    r"^_galore_test-test_(left_vs_right|rank_is|memory|projector|mu_dtype|mixed_pytree)": "galore has Adam inside, and a state of its own",
    r"^_mechanic_test": "mechanic keeps a scalar for each decay, not a vector of them",
    r"^_muon_test-test_(callable_weight|reshape_and|reshape_update|dim_nums)": "`roles` say how leaves are read, not dimension numbers",
    r"^_freezing_test-test_bad_structure_raises": "the message names the leaf that the mask lacks",
    r"^_freezing_test-test_selective_bad_structure": "fails for optax's own too: the words are those of an older JAX",
    r"^_adding_test-test_none_argument": "the state has to be one that the rule has made",
    r"^_clipping_test-test_clip_by_block_rms": "asks for 5e-8 of 1; compiled, a root and a division round once more",
    r"^_state_utils_test-test_map_non_params_to_none": "a scheduled state says of which schedule it is",
    r"^_state_utils_test-test_tree_(get|set)$": "the state of `add_noise` is a class of ours",
}
# 10,000 steps and more, or a compilation for each rule and dtype
_SLOW = "test_optimization|test_optimizers-|stability|accept_|gradient_accumulation|sharding_type"
_SLOW += "|preserve_dtype|inject_hyperparams-|mixed_precision|muon_orthogonalization_modes|complex_mixed|mixed_dtype|clip_by_global"
_REPRESENTATIVES = (
    r"^alias_test-test_optimization-(adamw|rmsprop)-_setup_parabola-float32",
    r"^alias_test-.*(stability|accumulation|preserve_dtype)-(adamw|lamb|noisy_sgd)-(bfloat16|complex64)",
    r"inject_hyperparams-(adafactor|adamw|lamb|lars|noisy_sgd|polyak_sgd|rprop|sm3|cocob|dog|prodigy|sgd)",
    r"^alias_test-.*accept_extra_args-(adamw|polyak_sgd)",
    r"^_schedule_test-test_optimization-(adamw|rprop)",
    r"^_common_test-test_optimizers-(muon|prodigy|sophia|schedule_free_adamw)-.*_setup_mixed",
    r"^_common_test-test_optimizers-sgd-(mechanize|schedule_free)-.*_setup_mixed",
    r"^_common_test-test_optimizers_accept_extra_args-(adopt|dog|sophia)-",
    r"^_common_test-.*(preserve_dtype|accumulation)-(cocob|prodigy|sophia)-.*bfloat16",
    r"^sharding_test-.*sharding_type_.*_(adafactor|adamw|novograd|sm)$",
    r"^float64_test-.*-(adamw|add_noise|clip_by_global_norm|lamb)$",
    r"^_muon_test-.*(standard_wide|True-True)",
)


def is_full(label: str) -> bool:
    """Whether a case is one of many slow ones, for the rest of which a few stand."""
    return bool(re.search(_SLOW, label)) and not any(re.search(r, label) for r in _REPRESENTATIVES)
