"""Rules that take signs."""

import numpy as np

from ._tried import tried


@tried(rate=0.001)
def sign_sgd(grads, p, lr, weight_decay=0.0):
    """Bernstein et al. 2018, algorithm 1."""
    for g in grads:
        p = p - lr * (np.sign(g) + weight_decay * p)
        yield p


@tried(rate=0.001)
def signum(grads, p, lr, beta=0.9, weight_decay=0.0):
    """Bernstein et al. 2018, algorithm 2."""
    m = np.zeros_like(p)
    for g in grads:
        m = beta * m + (1 - beta) * g
        p = p - lr * (np.sign(m) + weight_decay * p)
        yield p


@tried(peer=False, unlike="it moves one step late", notes=("rate inside", "no schedule"))
def rprop(grads, p, lr, eta_minus=0.5, eta_plus=1.2, min_step_size=1e-6, max_step_size=50.0):
    """Igel and Hüsken 2000, iRprop-."""
    size, before = np.full_like(p, lr), np.zeros_like(p)
    for g in grads:
        s = np.sign(g) * np.sign(before)
        size = np.where(s > 0, size * eta_plus, np.where(s < 0, size * eta_minus, size))
        size = np.where(s == 0, size, np.clip(size, min_step_size, max_step_size))
        before = np.where(s < 0, 0.0, g)
        p = p - size * np.sign(before)
        yield p
