"""PyTorch's optimizers for the same trees."""

import importlib
import os
from types import SimpleNamespace


def _fused(torch, params):
    return torch.optim.AdamW(params, lr=1e-3, fused=True)


def _clipped(torch, params):
    rule = _fused(torch, params)
    return SimpleNamespace(step=lambda: (torch.nn.utils.clip_grad_norm_(params, 1.0), rule.step()))


TORCH = {  # what PyTorch has for a case: name, module, dtype of parameters and gradients, how it is made
    "AdamW": ("torch AdamW fused, float32", "torch", "float32", _fused),
    "clip + AdamW": ("torch clip + AdamW fused, float32", "torch", "float32", _clipped),
    "AdamW int8": (
        "bitsandbytes AdamW, 8 bits",
        "bitsandbytes",
        "float32",
        lambda bitsandbytes, params: bitsandbytes.optim.AdamW8bit(params, lr=1e-3),
    ),
    "AdamW int8 + split": (
        "FlashOptim AdamW, 24 bits of master",
        "flashoptim",  # 0.1.4
        "bfloat16",
        lambda flashoptim, params: flashoptim.FlashAdamW(params, lr=1e-3, master_weight_bits=24),
    ),
}


def program(shapes, module, dtype, make):
    """What runs some steps, and what is known of it before."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(os.cpu_count())
    kind = getattr(torch, dtype)
    params = [torch.zeros(s, device=device, dtype=kind, requires_grad=True) for s in shapes.values()]
    for p in params:
        p.grad = torch.full_like(p, 0.01)
    optimizer = make(importlib.import_module(module), params)

    def run(times):
        for _ in range(times):
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run, {"floor_bytes": 0, "temporary_bytes": 0}
