"""Runs with every kind of rule and wrapper: what they ask for they get, and they go on to the bit."""

import pytest

from jaxopt_large.checkpoint._manifest import read_manifest

from .runs import lines, run

_RULE = "optimizer.groups={{'*': {{rule: {0}}}}}"
KINDS = {
    "needs the loss": [_RULE.format("polyak_sgd")],
    "needs curvature": [_RULE.format("sophia, learning_rate: 0.01, update_interval: 2")],
    "finds its rate": [_RULE.format("prodigy, betas: [0.9, 0.99]")],
    "factored": [
        _RULE.format("adafactor, learning_rate: 0.1, min_dim_size_to_factor: 4, axes: {'*': [0, 1]}")
    ],
    "of low rank": [_RULE.format("galore, learning_rate: 0.01, rank: 4")],
    "random": [_RULE.format("noisy_sgd, learning_rate: 0.05, key: 3")],
    "a group that averages": [
        "optimizer.groups={'*bias*': {rule: asgd, learning_rate: 0.01}, '*': {rule: adam, learning_rate: 0.01}}"
    ],
    "schedule-free": [
        _RULE.format("sgd, learning_rate: 0.1"),
        "optimizer.wrappers=[{wrapper: schedule_free, learning_rate: 0.1}]",
    ],
    "several wrappers": [
        _RULE.format("adamw, learning_rate: 0.01, weight_decay: 0.0"),
        "optimizer.wrappers=[{wrapper: cautious}, {wrapper: decoupled, weight_decay: 0.01, mask: '*kernel*'}, "
        "{wrapper: ema_of_params, decay: 0.9}]",
    ],
    "pmap": [
        "placement={parallel: pmap, mesh: {data: 2}, zero: data}",
        _RULE.format("adam_mini, learning_rate: 0.01"),
        "optimizer.wrappers=[{wrapper: lookahead, sync_period: 2}]",
    ],
}


def _checksums(folder):
    return read_manifest(folder / "checkpoints" / "step_00000006")["arrays"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_as_if_it_had_not_stopped(kind, tmp_path):
    settings = [*KINDS[kind], "train.checkpoint_every=3"]
    if "group" not in kind:
        settings.append("name=digits")
    run(tmp_path / "whole", *settings)
    run(tmp_path / "parts", *settings, "train.steps=3")
    run(tmp_path / "parts", *settings, resume=True)
    whole, parts = (tmp_path / name / "digits" for name in ("whole", "parts"))
    assert _checksums(parts) == _checksums(whole)
    losses = [line["loss"] for line in lines(whole) if "loss" in line]
    assert len(losses) == 6
    assert all(loss < 100 for loss in losses)


def test_a_mask_that_matches_nothing_is_refused(tmp_path):
    wrapper = "optimizer.wrappers=[{wrapper: decoupled, weight_decay: 0.1, mask: '*nothing*'}]"
    with pytest.raises(ValueError, match=r"decoupled: .*nothing"):
        run(tmp_path, wrapper)
