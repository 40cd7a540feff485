"""Rules with norms of leaves."""

import numpy as np

from ._tried import tried
from .games import _directions


@tried(notes=("whole leaves", "rate inside", "goes on"), rate=0.1, weight_decay=0.1)
def lars(grads, p, lr, weight_decay=0.0, trust_coefficient=0.001, eps=0.0, momentum=0.9, nesterov=False):
    """You et al. 2017, algorithm 1."""
    v = np.zeros_like(p)
    for g in grads:
        h = g + weight_decay * p
        change = -lr * trust(p, h, trust_coefficient, eps) * h
        v = momentum * v + change
        p = p + (change + momentum * v if nesterov else v)
        yield p


def trust(p, h, coefficient=1.0, eps=0.0, least=0.0):
    norms = max(np.linalg.norm(p), least), max(np.linalg.norm(h), least)
    return coefficient * norms[0] / (norms[1] + eps) if min(norms) > 0 else 1.0


@tried(notes=("whole leaves", "rate inside"), weight_decay=0.1)
def lamb(grads, p, lr, weight_decay=0.0, eps=1e-6, **rest):
    """You et al. 2020, algorithm 2."""
    for u in _directions(grads, p, eps=eps, **rest):
        h = u + weight_decay * p
        p = p - lr * trust(p, h) * h
        yield p


@tried(notes=("whole leaves", "rate inside", "keeps going"))
def fromage(grads, p, lr, min_norm=1e-6):
    """Bernstein et al. 2020, algorithm 1."""
    for g in grads:
        p = (p - lr * trust(p, g, least=min_norm) * g) / np.sqrt(1 + lr**2)
        yield p


@tried(notes=("whole leaves",), weight_decay=0.1)
def novograd(grads, p, lr, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    """Ginsburg et al. 2019, algorithm 1."""
    m, v = np.zeros_like(p), None
    for g in grads:
        square = np.sum(g**2)
        v = square if v is None else b2 * v + (1 - b2) * square
        m = b1 * m + g / (np.sqrt(v + eps_root) + eps) + weight_decay * p
        p = p - lr * m
        yield p
