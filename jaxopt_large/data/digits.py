"""Handwritten digits, 8 x 8 pixels: 1,797 of them come with scikit-learn."""

import hashlib
from typing import Any

import numpy as np

from ._dataset import Batch, Dataset

_VALIDATION = 360  # a fifth


def digits(*, seed: int) -> Dataset:
    """Features in [0, 1], 64 of them, and labels 0 to 9; a fifth of the digits validates."""
    from sklearn.datasets import load_digits  # imported here: it takes a second

    loaded: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(loaded.target))
    features = (loaded.data / 16).astype(np.float32)[order]
    labels = loaded.target.astype(np.int32)[order]

    def example(index: int) -> Batch:
        return {"features": features[_VALIDATION + index], "labels": labels[_VALIDATION + index]}

    return Dataset(
        name="digits",
        size=len(labels) - _VALIDATION,
        example=example,
        validation={"features": features[:_VALIDATION], "labels": labels[:_VALIDATION]},
        tokens_per_example=1,
        unit="example",
        facts={"sha256": hashlib.sha256(loaded.data.tobytes()).hexdigest(), "examples": len(labels)},
    )
