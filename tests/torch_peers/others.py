"""Optimizers of PyTorch beside torch.optim, by other authors, as they are written here."""

from docs.torch_optim import Written

_ADOPT = "it counts the clipping's steps from 2; the paper, and here, from 1"
_GALORE = (
    "it has float32 singular vectors of any sign, renewed in step 5, not 6, and eps before the correction"
)
_LAMB = "it corrects neither mean before the norms, divides the rate by 1 - b1**t, and takes norms up to 10"
_LAPROP = "it adds 1e-15 under the root and eps before the correction, and decays what the step has moved"
_LARS = "it divides by the sum of both norms, as the paper; here, as in optax, by the norm of the sum"
_MARS = "it adds 1e-15 under the root, and eps before the correction of the mean square"
_SIMPLIFIED = "it weighs gradients by 1 - b1 in the sum, and divides by sqrt(1 - b2**t) where others multiply"
_STABLE = (
    "it divides the decay by the root mean square too, as the paper; here, as in AdamW, the decay is whole"
)
_YOGI = "it begins the mean gradient at the initial accumulator, as optax; here at 0"

OTHERS = {
    "schedulefree.AdamWScheduleFree(lr=0.01)": Written("jl.schedule_free_adamw(0.01)"),
    "schedulefree.AdamWScheduleFree(lr=0.01, betas=(0.95, 0.99), weight_decay=0.1, warmup_steps=5)": Written(
        "jl.schedule_free_adamw(0.01, 5, 0.95, 0.99, weight_decay=0.1)"
    ),
    "schedulefree.SGDScheduleFree(lr=0.1)": Written("jl.schedule_free_sgd(0.1)"),
    "schedulefree.SGDScheduleFree(lr=0.1, momentum=0.8, weight_decay=0.1, warmup_steps=5, weight_lr_power=1.0)": Written(
        "jl.schedule_free_sgd(0.1, 5, 0.8, weight_decay=0.1, weight_lr_power=1.0)"
    ),
    "prodigyopt.Prodigy(use_bias_correction=True)": Written("jl.prodigy()"),
    "prodigyopt.Prodigy(use_bias_correction=True, weight_decay=0.1, d0=0.001, d_coef=2.0, safeguard_warmup=True)": Written(
        "jl.prodigy(weight_decay=0.1, estim_lr0=0.001, estim_lr_coef=2.0, safeguard_warmup=True)"
    ),
    "prodigyopt.Prodigy(use_bias_correction=True, lr=0.5, beta3=0.9, d0=0.001)": Written(
        "jl.prodigy(0.5, beta3=0.9, estim_lr0=0.001)"
    ),
    "dadaptation.DAdaptAdam(decouple=True, use_bias_correction=True)": Written("jl.dadapt_adamw()"),
    "dadaptation.DAdaptAdam(decouple=True, use_bias_correction=True, lr=0.5, weight_decay=0.1, d0=0.001)": Written(
        "jl.dadapt_adamw(0.5, weight_decay=0.1, estim_lr0=0.001)"
    ),
    "lion_pytorch.Lion(lr=0.001, weight_decay=0.1)": Written("jl.lion(0.001, weight_decay=0.1)"),
    "pytorch_optimizer.Lion(lr=0.001, weight_decay=0.1, betas=(0.8, 0.9))": Written(
        "jl.lion(0.001, 0.8, 0.9, weight_decay=0.1)"
    ),
    "pytorch_optimizer.Adan(weight_decay=0.1, weight_decouple=True)": Written(
        "jl.adan(0.001, eps_root=0.0, weight_decay=0.1)"
    ),
    "pytorch_optimizer.AdaBelief(weight_decay=0.1)": Written("jl.adabelief(0.001, weight_decay=0.1)"),
    "pytorch_optimizer.Yogi(weight_decay=0.1)": Written(
        "jl.yogi(0.01, weight_decay=0.1)",
        _YOGI,
        (
            "pytorch_optimizer.Yogi(weight_decay=0.1, initial_accumulator=0.0)",
            "jl.yogi(0.01, initial_accumulator_value=0.0, weight_decay=0.1)",
        ),
    ),
    "pytorch_optimizer.LaProp(weight_decay=0.1, foreach=False)": Written(
        "jl.laprop(0.0004, weight_decay=0.1)",
        _LAPROP,
        ("pytorch_optimizer.LaProp(eps=1e-300, foreach=False) without 1e-15", "jl.laprop(0.0004, eps=0.0)"),
    ),
    "pytorch_optimizer.ADOPT(weight_decay=0.1, weight_decouple=True)": Written(
        "jl.adopt(0.001, weight_decay=0.1)",
        _ADOPT,
        (
            "pytorch_optimizer.ADOPT(weight_decay=0.1, weight_decouple=True, clip_lambda=lambda t: (t - 1) ** 0.25)",
            "jl.adopt(0.001, weight_decay=0.1)",
        ),
    ),
    "pytorch_optimizer.AdEMAMix(weight_decay=0.1, weight_decouple=True)": Written(
        "jl.ademamix(0.001, weight_decay=0.1)"
    ),
    "pytorch_optimizer.SimplifiedAdEMAMix(weight_decay=0.1, alpha=0.5, foreach=False)": Written(
        "jl.simplified_ademamix(0.0001, alpha=0.5, weight_decay=0.1)",
        _SIMPLIFIED,
        (
            "pytorch_optimizer.SimplifiedAdEMAMix(alpha=0.5, foreach=False)",
            "jl.simplified_ademamix(lambda t: 0.0001 * 0.01 / (1 - 0.95 ** (t + 1.0)), alpha=0.5 / 0.01)",
        ),
    ),
    "pytorch_optimizer.StableAdamW()": Written(
        "jl.stable_adamw(0.001, eps=1e-8)",
        _STABLE,
        (
            "pytorch_optimizer.StableAdamW(weight_decay=0.0)",
            "jl.stable_adamw(0.001, eps=1e-8, weight_decay=0.0)",
        ),
    ),
    "pytorch_optimizer.CAME(weight_decay=0.1)": Written("jl.came(0.0002, weight_decay=0.1)"),
    "pytorch_optimizer.Lamb(weight_decay=0.1, weight_decouple=False)": Written(
        "jl.lamb(0.001, weight_decay=0.1)",
        _LAMB,
        ("pytorch_optimizer.Lamb(adam_debias=True, eps=1e-300)", "jl.lamb(0.001, eps=0.0)"),
    ),
    "pytorch_optimizer.LARS(weight_decay=0.1)": Written(
        'jl.lars(0.001, 0.1, {"w": True, "b": False}, trust_ratio_mask={"w": True, "b": False})',
        _LARS,
        ("pytorch_optimizer.LARS()", 'jl.lars(0.001, trust_ratio_mask={"w": True, "b": False})'),
    ),
    "pytorch_optimizer.NovoGrad(weight_decay=0.1)": Written(
        "jl.novograd(0.001, 0.95, 0.98, 1e-8, weight_decay=0.1)"
    ),
    "pytorch_optimizer.MADGRAD(lr=0.01, weight_decay=0.1)": Written("jl.madgrad(0.01, weight_decay=0.1)"),
    "pytorch_optimizer.SM3(momentum=0.9)": Written(
        "optax.chain(jl.scale_by_sm3(0.9, eps=1e-30), jl.scale_by_learning_rate(0.1))"
    ),
    "pytorch_optimizer.MARS(weight_decay=0.1, optimize_1d=True)": Written(
        "jl.mars(0.003, weight_decay=0.1)",
        _MARS,
        (
            "pytorch_optimizer.MARS(weight_decay=0.1, optimize_1d=True, eps=1e-300) without 1e-15",
            "jl.mars(0.003, weight_decay=0.1, eps=0.0)",
        ),
    ),
    "pytorch_optimizer.SignSGD(weight_decay=0.1)": Written("jl.signum(0.001, weight_decay=0.1)"),
    "pytorch_optimizer.SignSGD(momentum=0.0)": Written("jl.sign_sgd(0.001)"),
    "pytorch_optimizer.Fromage()": Written("jl.fromage(0.01, 0.0)"),
    'pytorch_optimizer.GaLore(rank=2, update_proj_gap=5, scale=0.25, projection_type="std")': Written(
        "jl.galore(0.001, 2, 5, 0.25, eps=1e-6)",
        _GALORE,
        (
            'pytorch_optimizer.GaLore(rank=2, update_proj_gap=100, scale=0.25, projection_type="std", eps=1e-300) in float64',
            "jl.galore(0.001, 2, 100, 0.25, eps=0.0)",
        ),
    ),
}
