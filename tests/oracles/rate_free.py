"""Rules that find their own rate."""

import numpy as np

from ._tried import tried


@tried()
def adadelta(grads, p, lr=None, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Zeiler 2012, algorithm 1."""
    a, b = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        g = g + weight_decay * p
        a = rho * a + (1 - rho) * g**2
        u = np.sqrt(b + eps) / np.sqrt(a + eps) * g
        b = rho * b + (1 - rho) * u**2
        p = p - lr * u
        yield p


@tried(rate=1.0, notes=("rate inside", "keeps going"))
def cocob(grads, p, lr=1.0, alpha=100.0, eps=1e-8, weight_decay=0.0):
    """Orabona and Tommasi 2017, algorithm 2."""
    start = p
    most, sizes, won, total = np.full_like(p, eps), np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        g = lr * (g + weight_decay * p)
        most, sizes = np.maximum(most, np.abs(g)), sizes + np.abs(g)
        won, total = np.maximum(won - g * (p - start), 0.0), total - g
        p = start + total / (most * np.maximum(sizes + most, alpha * most)) * (most + won)
        yield p


@tried(rate=1.0, notes=("all leaves",), init_step=("heuristic", 1e-2), weight_decay=0.01)
def dog(grads, p, lr=1.0, init_step=("heuristic", 1e-6), eps=1e-8, weight_decay=None):
    """Ivgi et al. 2023, equation 1."""
    start, kind, size = p, *init_step
    far = {"heuristic": size * (1 + np.linalg.norm(p)), "distance": size, "learning_rate": 0.0}[kind]
    squares = 0.0
    for t, g in enumerate(grads):
        g = g + (weight_decay or 0.0) * p
        far, squares = max(far, np.linalg.norm(p - start)), squares + np.sum(g**2)
        rate = size if kind == "learning_rate" and t == 0 else far / np.sqrt(squares + eps)
        p = p - lr * rate * g
        yield p


@tried(rate=1.0, notes=("all leaves",), weight_decay=0.01)
def dowg(grads, p, lr=1.0, init_estim_sq_dist=None, eps=1e-4, weight_decay=None):
    """Khaled et al. 2023, algorithm 1."""
    start, far, weighted = p, eps if init_estim_sq_dist is None else init_estim_sq_dist, 0.0
    for g in grads:
        g = g + (weight_decay or 0.0) * p
        far = max(far, np.sum((p - start) ** 2))
        weighted = weighted + far * np.sum(g**2)
        p = p - lr * far / (np.sqrt(weighted) + eps) * g
        yield p


@tried(rate=1.0, notes=("all leaves", "rate inside", "goes on"), estim_lr0=1e-2, weight_decay=0.01)
def prodigy(
    grads,
    p,
    lr=1.0,
    betas=(0.9, 0.999),
    beta3=None,
    eps=1e-8,
    estim_lr0=1e-6,
    estim_lr_coef=1.0,
    weight_decay=0.0,
    safeguard_warmup=False,
):
    """Mishchenko and Defazio 2023, algorithm 4."""
    (b1, b2), start, d, r = betas, p, estim_lr0, 0.0
    b3 = np.sqrt(b2) if beta3 is None else beta3
    m, v, s = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        rate = d * lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = b3 * r + d / estim_lr0 * rate * np.sum(g * (start - p))
        s = b3 * s + d / estim_lr0 * (d if safeguard_warmup else rate) * g
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * (d * g) ** 2
        norm = np.sum(np.abs(s))
        d = max(d, estim_lr_coef * r / norm) if norm > 0 else d
        root = np.sqrt(v) + d * eps
        p = p - rate * (np.divide(m, root, out=np.zeros_like(m), where=root > 0) + weight_decay * p)
        yield p


@tried(rate=1.0, notes=("all leaves", "rate inside", "goes on"), estim_lr0=1e-2, weight_decay=0.01)
def dadapt_adamw(grads, p, lr=1.0, betas=(0.9, 0.999), eps=1e-8, estim_lr0=1e-6, weight_decay=0.0):
    """Defazio and Mishchenko 2023, in the form of their program."""
    (b1, b2), d, r = betas, estim_lr0, 0.0
    b = np.sqrt(b2)
    m, v, s = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        rate = d * lr * np.sqrt(1 - b2**t) / (1 - b1**t)
        r = b * r + (1 - b) * rate * np.sum(g * s / (np.sqrt(v) + eps))
        s = b * s + (1 - b) * rate * g
        m, v = b1 * m + (1 - b1) * rate * g, b2 * v + (1 - b2) * g**2
        norm = np.sum(np.abs(s))
        d = max(d, r / ((1 - b) * norm)) if norm > 0 else d
        p = p - m / (np.sqrt(v) + eps) - rate * weight_decay * p
        yield p
