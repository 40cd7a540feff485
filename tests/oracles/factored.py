"""Rules whose second moments are kept for rows and columns."""

import numpy as np

from ._tried import tried


def _rms(x):
    return np.sqrt(np.mean(x**2))


@tried(notes=("whole leaves", "rate inside"), min_dim_size_to_factor=4)
def adafactor(
    grads,
    p,
    lr=None,
    min_dim_size_to_factor=128,
    decay_rate=0.8,
    decay_offset=0,
    multiply_by_parameter_scale=True,
    clipping_threshold=1.0,
    momentum=None,
    weight_decay_rate=None,
    eps=1e-30,
    factored=True,
):
    """Shazeer and Stern 2018, algorithms 4 and 5, over the last two axes."""
    is_factored = factored and p.ndim > 1 and min(p.shape[-2:]) >= min_dim_size_to_factor
    rows = columns = v = 0.0
    m = np.zeros_like(p)
    for t, g in enumerate(grads, start=1 - decay_offset):
        b = 1 - t**-decay_rate
        square = g**2 + eps
        if is_factored:
            rows = b * rows + (1 - b) * square.mean(-1, keepdims=True)
            columns = b * columns + (1 - b) * square.mean(-2, keepdims=True)
            v_hat = rows * columns / rows.mean(-2, keepdims=True)
        else:
            v_hat = v = b * v + (1 - b) * square
        u = g / np.sqrt(v_hat)
        if clipping_threshold is not None:
            u = u / max(1.0, _rms(u) / clipping_threshold)
        u = u * (1.0 if lr is None else lr)
        if multiply_by_parameter_scale:
            u = u * max(_rms(p), 1e-3)
        if momentum is not None:
            u = m = momentum * m + (1 - momentum) * u
        p = p - u - (weight_decay_rate or 0.0) * p
        yield p


@tried(peer=False, notes=("whole leaves",), rate=1e-3, weight_decay=0.1)
def came(
    grads,
    p,
    lr,
    b1=0.9,
    b2=0.999,
    b3=0.9999,
    eps=1e-30,
    eps_error=1e-16,
    clipping_threshold=1.0,
    weight_decay=0.0,
):
    """Luo et al. 2023, algorithm 2."""
    rows = columns = v = error_rows = error_columns = 0.0
    m = np.zeros_like(p)
    for g in grads:
        square = g**2 + eps
        if p.ndim > 1:
            rows = b2 * rows + (1 - b2) * square.mean(-1, keepdims=True)
            columns = b2 * columns + (1 - b2) * square.mean(-2, keepdims=True)
            u = g / np.sqrt(rows * columns / rows.mean(-2, keepdims=True))
        else:
            v = b2 * v + (1 - b2) * square
            u = g / np.sqrt(v)
        u = u / max(1.0, _rms(u) / clipping_threshold)
        m = b1 * m + (1 - b1) * u
        step = m
        if p.ndim > 1:
            error = (u - m) ** 2 + eps_error
            error_rows = b3 * error_rows + (1 - b3) * error.mean(-1, keepdims=True)
            error_columns = b3 * error_columns + (1 - b3) * error.mean(-2, keepdims=True)
            step = m / np.sqrt(error_rows * error_columns / error_rows.mean(-2, keepdims=True))
        p = p - lr * (step + weight_decay * p)
        yield p


@tried(peer=False, notes=("whole leaves",), weight_decay=0.1)
def adam_mini(grads, p, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    """Zhang et al. 2024, algorithm 1, a block for each output neuron."""
    m, v = np.zeros_like(p), 0.0
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        square = np.mean(g**2, axis=-2, keepdims=True) if p.ndim > 1 else np.mean(g**2)
        v = b2 * v + (1 - b2) * square
        root = np.sqrt(v / (1 - b2**t)) + eps
        p = p - lr * (m / (1 - b1**t) / root + weight_decay * p)
        yield p


@tried(notes=("whole leaves",), rate=0.1)
def sm3(grads, p, lr, momentum=0.9):
    """Anil et al. 2019, algorithm SM3-II, one accumulator for each index of each axis."""
    axes = range(p.ndim)
    most = [np.zeros([n if d == axis else 1 for d, n in enumerate(p.shape)]) for axis in axes]
    whole, m = np.zeros_like(p), np.zeros_like(p)
    for g in grads:
        if p.ndim > 1:
            total = most[0]
            for other in most[1:]:
                total = np.minimum(total, other)
            total = total + g**2
            most = [total.max(axis=tuple(d for d in axes if d != axis), keepdims=True) for axis in axes]
        else:
            total = whole = whole + g**2
        u = np.where(total > 0, g / np.sqrt(np.where(total > 0, total, 1.0) + 1e-8), 0.0)
        m = momentum * m + (1 - momentum) * u
        p = p - lr * m
        yield p
