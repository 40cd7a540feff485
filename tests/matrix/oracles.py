"""Rules of matrices in NumPy float64, written from the papers, on one matrix [in, out].

Each oracle is a function (gradients of all steps, first matrix, hyper-parameters) -> the matrix after each step.
Nothing here is shared with the library.
"""

import numpy as np

KELLER = [(3.4445, -4.7750, 2.0315)] * 5
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]
SCALES = {
    None: lambda m, n: 1.0,
    "keller": lambda m, n: max(1.0, n / m) ** 0.5,
    "moonlight": lambda m, n: 0.2 * max(m, n) ** 0.5,
    "spectral": lambda m, n: (n / m) ** 0.5,
}


def newton_schulz(g, rows=KELLER, margin=1.0, eps=1e-8):
    """By the singular value decomposition: what the iterations do to singular values alone."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / (margin * np.sqrt(np.sum(s**2)) + eps)
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ vt


def named(name):
    return (KELLER, 1.0) if name == "keller" else (POLAR_EXPRESS, 1.02)


def muon(
    grads,
    p,
    lr,
    ns_coeffs="keller",
    beta=0.95,
    nesterov=True,
    scale="keller",
    weight_decay=0.0,
    cautious=False,
):
    """Jordan 2024; Liu et al. 2025 for the decay."""
    m = np.zeros_like(p)
    for g in grads:
        m = beta * m + (1 - beta) * g
        o = newton_schulz(beta * m + (1 - beta) * g if nesterov else m, *named(ns_coeffs))
        o = o * SCALES[scale](*p.shape)
        p = p - lr * (o + weight_decay * p * ((o * p > 0) if cautious else 1.0))
        yield p


def normuon(grads, p, lr, beta=0.95, b2=0.95, eps=1e-8, scale="moonlight", weight_decay=0.0):
    """Li et al. 2025, algorithm 1, with rows for outputs there, columns here."""
    m, v = np.zeros_like(p), np.zeros(p.shape[1])
    for g in grads:
        m = beta * m + (1 - beta) * g
        o = newton_schulz(beta * m + (1 - beta) * g)
        v = b2 * v + (1 - b2) * np.mean(o**2, axis=0)
        o_hat = o / (np.sqrt(v) + eps)
        o_hat = o_hat * np.linalg.norm(o) / max(np.linalg.norm(o_hat), 1e-300)
        p = p - lr * (SCALES[scale](*p.shape) * o_hat + weight_decay * p)
        yield p


def _refreshed(a, q):
    mean = np.trace(a) / len(a)
    return np.linalg.qr(a @ q + 1e-3 * (mean if mean > 0 else 1.0) * q)[0]


def _exact(x):
    """Rotated matrices have zeros where there is rounding; Adam would make it large."""
    return np.where(np.abs(x) > 4 * np.finfo(float).eps * np.linalg.norm(x), x, 0.0)


def soap(grads, p, lr, b1=0.95, b2=0.95, eps=1e-8, refresh=10, weight_decay=0.0):
    """Vyas et al. 2024, algorithm 3, on a matrix of one block."""
    (rows, columns), m, v = p.shape, np.zeros_like(p), np.zeros_like(p)
    left, right = np.zeros((rows, rows)), np.zeros((columns, columns))
    ql, qr = np.eye(rows), np.eye(columns)
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        if t == 1:
            left, right = (1 - b2) * g @ g.T, (1 - b2) * g.T @ g
            for _ in range(8):
                ql, qr = _refreshed(left, ql), _refreshed(right, qr)
        v = b2 * v + (1 - b2) * _exact(ql.T @ g @ qr) ** 2
        n = (_exact(ql.T @ m @ qr) / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        n = np.where(v > 0, n, 0.0)
        if t > 1:
            left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        p = p - lr * (ql @ n @ qr.T + weight_decay * p)
        if t > 1 and t % refresh == 0:
            order = np.argsort(-np.sum(ql * (left @ ql), axis=0), kind="stable")
            ql, v = _refreshed(left, ql[:, order]), v[order]
            order = np.argsort(-np.sum(qr * (right @ qr), axis=0), kind="stable")
            qr, v = _refreshed(right, qr[:, order]), v[:, order]
        yield p


def _inverse_root(a, p, ridge):
    values, vectors = np.linalg.eigh(a + ridge * np.linalg.norm(a) * np.eye(len(a)))
    return (vectors * values ** (-1.0 / p)) @ vectors.T


def shampoo(
    grads,
    p,
    lr,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    ridge=1e-4,
    sides="both",
    graft="adam",
    refresh=10,
    weight_decay=0.0,
):
    """Gupta et al. 2018, algorithm 1, with the means and the grafting of Shi et al. 2023; one block."""
    (rows, columns), m, v = p.shape, np.zeros_like(p), np.zeros_like(p)
    left, right, l_root, r_root = (
        np.zeros((rows, rows)),
        np.zeros((columns, columns)),
        np.eye(rows),
        np.eye(columns),
    )
    power = 4 if sides == "both" else 2
    for t, g in enumerate(grads, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        if t == 1 or t % refresh == 0:
            if sides != "out" and left.any():
                l_root = _inverse_root(left / (1 - b2**t), power, ridge)
            if sides != "in" and right.any():
                r_root = _inverse_root(right / (1 - b2**t), power, ridge)
        mean = m / (1 - b1**t)
        u = l_root @ mean @ r_root
        like = mean / (np.sqrt(v / (1 - b2**t)) + eps) if graft == "adam" else mean
        if graft != "none" and np.linalg.norm(u):
            u = u * np.linalg.norm(like) / np.linalg.norm(u)
        p = p - lr * (u + weight_decay * p)
        yield p


def _norm_of(a):
    x = a[np.argmax(np.sum(a**2, axis=1))]
    for _ in range(2):
        x = a @ (x / np.linalg.norm(x)) if np.linalg.norm(x) else x
    return np.linalg.norm(x)


def _turned(q):
    r = q.T - q
    size = np.sqrt(_norm_of(r @ r.T))
    r = r / size if size else r
    first = r @ q
    second = r @ first
    one, two = np.trace(first), np.trace(second)
    a = np.clip(-one / two, 0.0, 1 / 8) if two < 0 else 1 / 8
    return q + a * (first + 0.5 * a * second)


def kron(grads, p, lr, b1=0.9, factor_rate=0.1, form="products", weight_decay=0.0):
    """Pooladzandi and Li 2024, with the mean over V in the place of a sample; one block."""
    (rows, columns), m, bounds = p.shape, np.zeros_like(p), np.zeros(2)
    q = None
    for t, g in enumerate(grads, start=1):
        m = b1 * m + (1 - b1) * g
        if t == 1 or (np.any(g) and not np.any(bounds)):
            size = np.mean(g**4) ** 0.25
            q = [(size if size else 1.0) ** -0.25 * np.eye(n) for n in (rows, columns)]
        if np.any(g):
            ql, qr = q
            if form == "products":
                x = ql.T @ ql @ g @ qr.T @ qr
                for n, (e, mean) in enumerate(((x @ x.T, columns), (x.T @ x, rows))):
                    now = _norm_of(e) + mean
                    bounds[n] = max(0.9 * bounds[n] + 0.1 * now, now)
                    q[n] = _turned(q[n] - factor_rate / bounds[n] * (e - mean * np.eye(len(e))) @ q[n])
            else:
                a, il, ir = ql @ g @ qr.T, np.linalg.inv(ql), np.linalg.inv(qr)
                pairs = (a @ a.T, np.sum(ir**2) * il.T @ il), (a.T @ a, np.sum(il**2) * ir.T @ ir)
                for n, (e, b) in enumerate(pairs):
                    bounds[n] = _norm_of(e + b)
                    q[n] = q[n] - factor_rate / bounds[n] * np.triu(e - b) @ q[n]
        u = q[0].T @ q[0] @ (m / (1 - b1**t)) @ q[1].T @ q[1]
        rms = np.sqrt(np.mean(u**2))
        p = p - lr * (u * min(1.0, 1.1 / rms if rms else 1.0) + weight_decay * p)
        yield p


def dion(grads, p, lr, basis, beta=0.95, eps=1e-8, scale="spectral", weight_decay=0.0):
    """Ahn et al. 2025, algorithm 1, from a given first basis."""
    m, q = np.zeros_like(p), basis
    for g in grads:
        m = m + g
        x = m @ q
        left = np.linalg.qr(x / np.abs(x).max())[0] if np.any(x) else np.zeros_like(x)
        right = m.T @ left
        norms = np.linalg.norm(right, axis=0)
        q = np.where(norms > 0, right / np.where(norms > 0, norms, 1.0), q)
        m = m - (1 - beta) * left @ right.T
        p = p - lr * (SCALES[scale](*p.shape) * left @ (right / (norms + eps)).T + weight_decay * p)
        yield p


def scion(grads, p, lr, radius=50.0, beta=0.9, constrained=True):
    """Pethick et al. 2025, algorithms 1 and 2."""
    m = np.zeros_like(p)
    for g in grads:
        m = beta * m + (1 - beta) * g
        step = radius * SCALES["spectral"](*p.shape) * newton_schulz(m)
        p = p - lr * (step + (p if constrained else 0.0))
        yield p


def galore(
    grads, p, lr, rank=128, update_proj_gap=200, scale=1.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0
):
    """Zhao et al. 2024, algorithm 2; the shorter side is projected."""
    tall, r = p.shape[0] > p.shape[1], min(rank, *p.shape)
    m = v = 0.0
    for t, g in enumerate(grads, start=1):
        w = g.T if tall else g
        if (t - 1) % update_proj_gap == 0:
            basis = np.linalg.svd(w, full_matrices=False)[0][:, :r]
            basis = basis * np.sign(basis[np.argmax(np.abs(basis), axis=0), np.arange(r)])
        low = basis.T @ w
        m, v = b1 * m + (1 - b1) * low, b2 * v + (1 - b2) * low**2
        u = scale * basis @ (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps))
        p = p - lr * ((u.T if tall else u) + weight_decay * p)
        yield p


def apollo(
    grads,
    p,
    lr,
    rank=256,
    update_proj_gap=200,
    scale=1.0,
    per="channel",
    growth=1.01,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
):
    """Zhu et al. 2024, algorithm 1; the random numbers are JAX's."""
    import jax

    tall, r = p.shape[0] > p.shape[1], min(rank, *p.shape)
    m = v = before = 0.0
    for t, g in enumerate(grads, start=1):
        w = g.T if tall else g
        key = jax.random.fold_in(jax.random.key(0), (t - 1) // update_proj_gap)
        low = np.asarray(jax.random.normal(key, (r, w.shape[0]), w.dtype)) / np.sqrt(r) @ w
        m, v = b1 * m + (1 - b1) * low, b2 * v + (1 - b2) * low**2
        step = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        norms = [np.linalg.norm(x, axis=0) if per == "channel" else np.linalg.norm(x) for x in (step, low)]
        u = scale * w * np.divide(*norms, out=np.zeros_like(norms[0]), where=norms[1] > 0)
        size = np.linalg.norm(u)
        if growth is not None and before > 0 and size > growth * before:
            u, size = u * growth * before / size, growth * before
        before = size
        p = p - lr * ((u.T if tall else u) + weight_decay * p)
        yield p
