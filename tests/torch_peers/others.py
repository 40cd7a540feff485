"""Optimizers of PyTorch beside torch.optim, by other authors, as they are written here."""

from docs.torch_optim import Written

OTHERS = {}
