"""The first rules."""

import numpy as np

from ._tried import tried


@tried(peer="sgd")
def gradient_descent(grads, p, lr):
    for g in grads:
        p = p - lr * g
        yield p


@tried(momentum=0.9)
def sgd(grads, p, lr, momentum=0.0, nesterov=False):
    """Sutskever et al. 2013, in the form of all frameworks: the velocity does not hold the rate."""
    v = np.zeros_like(p)
    for g in grads:
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
        yield p


@tried(rate=0.1)
def adagrad(grads, p, lr, initial_accumulator_value=0.1, eps=1e-7, eps_in_sqrt=True):
    """Duchi et al. 2011, diagonal; optax's place for eps."""
    s = np.full_like(p, initial_accumulator_value)
    for g in grads:
        s = s + g * g
        p = p - lr * g / (np.sqrt(s + eps) if eps_in_sqrt else np.sqrt(s) + eps)
        yield p


@tried()
def rmsprop(
    grads,
    p,
    lr,
    decay=0.9,
    eps=1e-8,
    initial_scale=0.0,
    eps_in_sqrt=True,
    centered=False,
    momentum=None,
    nesterov=False,
    bias_correction=False,
):
    """Tieleman and Hinton 2012; centered: Graves 2013, equations 38 to 45."""
    n, m, v = np.full_like(p, initial_scale), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        n = decay * n + (1 - decay) * g**2
        m = decay * m + (1 - decay) * g
        c = 1 - decay**t if bias_correction else 1.0
        spread = n / c - (m / c) ** 2 if centered else n / c
        change = -lr * g / (np.sqrt(spread + eps) if eps_in_sqrt else np.sqrt(spread) + eps)
        if momentum is not None:
            v = momentum * v + change
            change = change + momentum * v if nesterov else v
        p = p + change
        yield p


@tried()
def adam(grads, p, lr, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=False, weight_decay=0.0):
    """Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2; Dozat 2016."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        v_hat = v / (1 - b2**t)
        p = p - lr * (m_hat / (np.sqrt(v_hat + eps_root) + eps) + weight_decay * p)
        yield p


@tried(weight_decay=0.1)
def adamw(grads, p, lr, weight_decay=1e-4, **rest):
    return adam(grads, p, lr, weight_decay=weight_decay, **rest)


@tried(rate=0.001, weight_decay=0.1)
def lion(grads, p, lr, b1=0.9, b2=0.99, weight_decay=1e-3):
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(p)
    for g in grads:
        u = np.sign(b1 * m + (1 - b1) * g)
        m = b2 * m + (1 - b2) * g
        p = p - lr * (u + weight_decay * p)
        yield p
