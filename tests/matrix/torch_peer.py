"""torch.optim.Muon on a small problem; what it ends with is kept, so that tests need no torch.

pip install 'jaxopt_large[torch]' && python -m tests.matrix.torch_peer     # write torch_muon.json again
"""

import json
from pathlib import Path

import numpy as np

RATE, DECAY = 0.02, 0.1
_FILE = Path(__file__).with_name("torch_muon.json")


def problem():
    """The first weights, [in, out], and the gradients of 20 steps."""
    r = np.random.default_rng(8)
    return r.normal(size=(6, 10)), r.normal(size=(20, 6, 10))


def recorded():
    """adjust_lr_fn -> weights after the last step."""
    return {k: np.asarray(x) for k, x in json.loads(_FILE.read_text())["weights"].items()}


def trained(adjust_lr_fn):
    import torch

    start, grads = problem()
    weight = torch.nn.Parameter(torch.tensor(start.T, dtype=torch.float32))  # torch's are [out, in]
    rule = torch.optim.Muon([weight], lr=RATE, weight_decay=DECAY, momentum=0.95, adjust_lr_fn=adjust_lr_fn)
    for g in grads:
        weight.grad = torch.tensor(g.T, dtype=torch.float32)
        rule.step()
    return weight.detach().numpy().T


def _record():
    import torch

    weights = {k: trained(k).round(5).tolist() for k in ("original", "match_rms_adamw")}
    _FILE.write_text(json.dumps({"torch": torch.__version__, "weights": weights}) + "\n")


if __name__ == "__main__":
    _record()
