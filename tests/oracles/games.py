"""Optimistic gradients, Polyak's step size, averages, noise."""

import numpy as np

from ._tried import tried
from .first import adam


def _directions(grads, p, **settings):
    """Adam's direction in each step: its parameters from 0 with a rate of -1."""
    at = np.zeros_like(p)
    for now in adam(grads, at, -1.0, **settings):
        yield now - at
        at = now


@tried()
def optimistic_gradient_descent(grads, p, lr, alpha=1.0, beta=1.0):
    """Mokhtari et al. 2019, equation 6."""
    before = None
    for g in grads:
        before = g if before is None else before
        p = p - lr * ((alpha + beta) * g - beta * before)
        before = g
        yield p


@tried(notes=("rate inside", "no schedule"))
def optimistic_adam(grads, p, lr, optimism=None, nesterov=True, **rest):
    return optimistic_gradient_descent(
        list(_directions(grads, p, nesterov=nesterov, **rest)),
        p,
        1.0,
        lr,
        lr if optimism is None else optimism,
    )


@tried(notes=("rate inside",))
def optimistic_adam_v2(grads, p, lr, alpha=1.0, beta=1.0, nesterov=True, **rest):
    return optimistic_gradient_descent(
        list(_directions(grads, p, nesterov=nesterov, **rest)), p, lr, alpha, beta
    )


@tried(peer="polyak_sgd", rate=1.0, notes=("rate inside", "no schedule", "all leaves", "value"))
def polyak_sgd(grads, p, lr, scaling=1.0, f_min=0.0, eps=0.0, variant="sps", value=2.0):
    """Loizou et al. 2021, equation 4, of a loss that is `value` throughout."""
    for g in grads:
        square = np.sum((scaling * g) ** 2) + eps
        gap = max(value - f_min, 0.0) if variant == "sps+" else value - f_min
        p = p - (min(gap / square, lr) * scaling * g if square > 2.0**-52 else 0.0)
        yield p


@tried(peer=False, rate=0.1, notes=("rate inside", "keeps going"), lambd=0.01, t0=20.0)
def asgd(grads, p, lr, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0):
    """Bottou 2010, section 5.3, in PyTorch's form."""
    for t, g in enumerate(grads):
        rate = lr / (1 + lambd * lr * t) ** alpha
        p = p - rate * (g + weight_decay * p) - rate * lambd * p
        yield p


@tried(notes=("random",), rate=0.1, eta=0.0)
def noisy_sgd(grads, p, lr, eta=0.01, gamma=0.55):
    """Without noise: what is drawn is looked at by itself."""
    assert eta == 0
    for g in grads:
        p = p - lr * g
        yield p


@tried(
    peer="madgrad", rate=0.1, notes=("rate inside", "keeps going", "goes on", "saturates"), weight_decay=0.01
)
def madgrad(grads, p, lr, momentum=0.9, weight_decay=0.0, eps=1e-6):
    """Defazio and Jelassi 2021, algorithm 1."""
    squares, s, start = np.zeros_like(p), np.zeros_like(p), p
    for t, g in enumerate(grads):
        g = g + weight_decay * p
        w = (lr + eps) * np.sqrt(t + 1)
        squares, s = squares + w * g**2, s + w * g
        p = momentum * p + (1 - momentum) * (start - s / (np.cbrt(squares) + eps))
        yield p
