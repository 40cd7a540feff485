"""Adam and its kin."""

import numpy as np

from ._tried import tried


def corrected(x, b, t):
    return x / (1 - b**t)


@tried(nesterov=True)
def nadam(
    grads, p, lr, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, nesterov=True, momentum_decay=None, decay=0.0
):
    """Dozat 2016, algorithm 8, with the schedule of its section 2 if `momentum_decay` is given."""
    m, v, product = np.zeros_like(p), np.zeros_like(p), 1.0

    def momentum(t):
        return b1 if momentum_decay is None else b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        product = product * momentum(t)
        ahead = momentum(t + 1) * m / (1 - product * momentum(t + 1)) + (1 - momentum(t)) * g / (1 - product)
        p = p - lr * (ahead / (np.sqrt(corrected(v, b2, t) + eps_root) + eps) + decay * p)
        yield p


@tried(weight_decay=0.1)
def nadamw(grads, p, lr, weight_decay=1e-4, **rest):
    return nadam(grads, p, lr, decay=weight_decay, **rest)


@tried(notes=("saturates",), b2=0.98)
def radam(
    grads, p, lr, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0, nesterov=False, weight_decay=0.0
):
    """Liu et al. 2020, algorithm 2."""
    m, v, longest = np.zeros_like(p), np.zeros_like(p), 2 / (1 - b2) - 1
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        u = corrected(m, b1, t)
        if nesterov:
            u = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        length = longest - 2 * t * b2**t / (1 - b2**t)
        if length >= threshold:
            r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
            u = np.sqrt(r) * u / (np.sqrt(corrected(v, b2, t) + eps_root) + eps)
        p = p - lr * (u + weight_decay * p)
        yield p


@tried()
def amsgrad(
    grads,
    p,
    lr,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    eps_root=0.0,
    bias_correction_mu=True,
    bias_correction_nu=True,
    corrected_last=False,
    weight_decay=0.0,
):
    """Reddi et al. 2018, algorithm 2, with the corrections of Adam."""
    m, v, most = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        c1 = 1 - b1**t if bias_correction_mu else 1.0
        c2 = 1 - b2**t if bias_correction_nu else 1.0
        most = np.maximum(most, v if corrected_last else v / c2)
        root = np.sqrt((most / c2 if corrected_last else most) + eps_root)
        p = p - lr * (m / c1 / (root + eps) + weight_decay * p)
        yield p


@tried(peer=False, weight_decay=0.1)
def amsgradw(grads, p, lr, weight_decay=1e-4, **rest):
    return amsgrad(grads, p, lr, weight_decay=weight_decay, **rest)


@tried()
def adamax(grads, p, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0):
    """Kingma and Ba 2015, algorithm 2; eps where PyTorch and optax have it."""
    m, u = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m, u = b1 * m + (1 - b1) * g, np.maximum(b2 * u, np.abs(g) + eps)
        p = p - lr * (corrected(m, b1, t) / u + weight_decay * p)
        yield p


@tried(weight_decay=0.1)
def adamaxw(grads, p, lr, weight_decay=1e-4, **rest):
    return adamax(grads, p, lr, weight_decay=weight_decay, **rest)


@tried()
def adabelief(grads, p, lr, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, nesterov=False, weight_decay=0.0):
    """Zhuang et al. 2020, algorithm 2."""
    m, s = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps_root
        u = corrected(m, b1, t)
        if nesterov:
            u = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        p = p - lr * (u / (np.sqrt(corrected(s, b2, t)) + eps) + weight_decay * p)
        yield p


@tried()
def yogi(grads, p, lr, b1=0.9, b2=0.999, eps=1e-3, initial_accumulator_value=1e-6, weight_decay=0.0):
    """Zaheer et al. 2018, algorithm 2, with the corrections of Adam."""
    m, v = np.zeros_like(p), np.full_like(p, initial_accumulator_value)
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, v - (1 - b2) * np.sign(v - g**2) * g**2
        p = p - lr * (corrected(m, b1, t) / (np.sqrt(corrected(v, b2, t)) + eps) + weight_decay * p)
        yield p


@tried(
    peer=False, unlike="it looks ahead by 1 - b2 of the difference, where the paper has b2", weight_decay=0.1
)
def adan(grads, p, lr, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=1e-8, weight_decay=0.0):
    """Xie et al. 2022, algorithm 1, each b one minus the paper's beta; decay as in AdamW."""
    m, v, n, before = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p), None
    for t, g in enumerate(grads, start=1):
        d = np.zeros_like(g) if before is None else g - before
        before = g
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * d
        n = b3 * n + (1 - b3) * (g + b2 * d) ** 2
        u = corrected(m, b1, t) + b2 * corrected(v, b2, t)
        p = p - lr * (u / (np.sqrt(corrected(n, b3, t) + eps_root) + eps) + weight_decay * p)
        yield p


@tried()
def adopt(
    grads, p, lr, b1=0.9, b2=0.9999, eps=1e-6, nesterov=False, use_clipping=True, clip=0.25, weight_decay=0.0
):
    """Taniguchi et al. 2024, algorithm 2, clipped as in their program."""
    m, v = np.zeros_like(p), None
    for t, g in enumerate(grads):
        u = m
        if v is None:
            v = g**2
        else:
            scaled = g / np.maximum(np.sqrt(v), eps)
            scaled = np.clip(scaled, -(t**clip), t**clip) if use_clipping else scaled
            m, v = b1 * m + (1 - b1) * scaled, b2 * v + (1 - b2) * g**2
            u = b1 * m + (1 - b1) * scaled if nesterov else m
        p = p - lr * (u + weight_decay * p)
        yield p


@tried(b3=0.99, weight_decay=0.1)
def ademamix(grads, p, lr, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    """Pagliardini et al. 2024, algorithm 1."""
    m, s, v = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m, s, v = b1 * m + (1 - b1) * g, b3 * s + (1 - b3) * g, b2 * v + (1 - b2) * g**2
        u = (corrected(m, b1, t) + alpha * s) / (np.sqrt(corrected(v, b2, t) + eps_root) + eps)
        p = p - lr * (u + weight_decay * p)
        yield p


@tried(rate=1e-3, alpha=2.0, weight_decay=0.1)
def simplified_ademamix(grads, p, lr, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    """Morwani et al. 2025."""
    m, n = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        m, n = b1 * m + g, b2 * n + (1 - b2) * g**2
        p = p - lr * ((m + alpha * g) / (np.sqrt(corrected(n, b2, t) + eps_root) + eps) + weight_decay * p)
        yield p


@tried(peer=False)
def laprop(grads, p, lr, b1=0.9, b2=0.999, eps=1e-15, weight_decay=0.0):
    """Ziyin et al. 2020, algorithm 1."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        v = b2 * v + (1 - b2) * g**2
        root = np.sqrt(corrected(v, b2, t)) + eps
        m = b1 * m + (1 - b1) * np.divide(g, root, out=np.zeros_like(g), where=root > 0)
        p = p - lr * (corrected(m, b1, t) + weight_decay * p)
        yield p


@tried(peer=False, notes=("whole leaves",), weight_decay=0.1)
def mars(grads, p, lr, b1=0.95, b2=0.99, eps=1e-8, gamma=0.025, max_norm=1.0, weight_decay=0.0):
    """Yuan et al. 2024, algorithm 2, approximate."""
    m, v, before = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        c = g + gamma * b1 / (1 - b1) * (g - before)
        before = g
        c = c / max(1.0, np.linalg.norm(c) / max_norm)
        m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * c**2
        u = corrected(m, b1, t) / (np.sqrt(corrected(v, b2, t)) + eps)
        p = p - lr * (u + weight_decay * p)
        yield p


@tried(peer=False, notes=("whole leaves",), weight_decay=0.1)
def stable_adamw(grads, p, lr, b1=0.9, b2=0.99, eps=1e-6, weight_decay=1e-2):
    """Wortsman et al. 2023, algorithm 2; the decay is not divided."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, start=1):
        # the paper's decays are those of the corrected means
        c1, c2 = b1 * (1 - b1 ** (t - 1)) / (1 - b1**t), b2 * (1 - b2 ** (t - 1)) / (1 - b2**t)
        m, v = c1 * m + (1 - c1) * g, c2 * v + (1 - c2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(v, eps**2)))
        p = p - lr * (m / (np.sqrt(v) + eps) / max(1.0, rms) + weight_decay * p)
        yield p


@tried(peer=False, notes=("rate inside", "obj_fn"), rate=0.05, weight_decay=0.1, update_interval=3)
def sophia(
    grads,
    p,
    lr,
    b1=0.965,
    b2=0.99,
    eps=1e-8,
    weight_decay=1e-4,
    gamma=0.01,
    clip_threshold=1.0,
    update_interval=10,
    diagonal=3.0,
):
    """Liu et al. 2023, algorithm 3, of a loss whose Hessian is a multiple of the identity."""
    m, h = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads):
        m = b1 * m + (1 - b1) * g
        u = m / (1 - b1 ** (t + 1)) / np.maximum(gamma * h, eps)
        p = p - lr * (np.clip(u, -clip_threshold, clip_threshold) + weight_decay * p)
        if t % update_interval == 0:
            h = b2 * h + (1 - b2) * diagonal
        yield p
