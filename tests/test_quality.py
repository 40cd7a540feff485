"""What the recorded training runs say of 8 bits and of independent implementations."""

import collections
import json
import math
import statistics
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def _losses():
    """Rule -> its losses on seeds 0 and 1, at its best rate."""
    runs = json.loads((_ROOT / "benchmarks" / "results" / "quality.json").read_text())["runs"]
    found = collections.defaultdict(dict)
    for run in runs:
        if run["size"] == "0.23M" and run["steps"] == 300:
            found[run["rule"], run["learning_rate"]][run["seed"]] = run["loss"]
    best = {}
    for (rule, _), seeds in found.items():
        pair = seeds.get(0), seeds.get(1)
        if None not in pair and (rule not in best or sum(pair) < sum(best[rule])):
            best[rule] = pair
    return best


_LOSSES = _losses()
_BASES = {rule: pair for rule, pair in _LOSSES.items() if " " not in rule}
# of a difference of two means of two seeds, pooled over all rules
_ERROR = math.sqrt(statistics.mean((a - b) ** 2 / 2 for a, b in _BASES.values()))


def _beside(kind):
    """Rule -> how much worse the variant is."""
    variants = {r.removesuffix(f" {kind}"): pair for r, pair in _LOSSES.items() if r.endswith(f" {kind}")}
    return {r: statistics.mean(pair) - statistics.mean(_LOSSES[r]) for r, pair in variants.items()}


def test_all_rules_have_runs():
    assert len(_BASES) >= 44
    assert len(_beside("int8")) == 31
    assert all(loss < 4.0 for pair in _LOSSES.values() for loss in pair)  # a byte at random has 5.5


def test_no_rule_is_worse_than_an_independent_one():
    for rule, worse in _beside("optax").items():
        assert -worse < 2 * _ERROR, (rule, worse)


def test_8_bits_learn_what_float32_learns():
    found = _beside("int8")
    error_of_mean = statistics.stdev(found.values()) / math.sqrt(len(found))
    assert abs(statistics.mean(found.values())) < 2 * error_of_mean
    # of 31 differences some are beyond one error, or two, if there is nothing: docs/QUALITY.md names them
    assert sum(abs(worse) <= _ERROR for worse in found.values()) >= 26
    assert {rule for rule, worse in found.items() if worse > 2 * _ERROR} == {"sophia", "yogi"}


def test_the_page_has_every_rule():
    page = (_ROOT / "docs" / "QUALITY.md").read_text()
    missing = [rule for rule in _BASES if f"| {rule} |" not in page and rule != "sgd"]
    assert not missing
