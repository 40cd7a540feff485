"""Learning rates in proportion: by path, by depth, by width."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._errors import NON_NEGATIVE, POSITIVE, Problems, check_rule, is_rule, number_problem
from ._hyperparameters import Glob, OneOf, checked
from ._numerics import times
from ._paths import check_glob, first_match, leaf_paths, matches, nearest
from ._types import AnyRule, Params, Rule, make_rule
from ._wrapped import Wrapped, followed_by
from .leafwise import Stage, along, lift, shape_of


class WithMultipliersState(Wrapped):
    """State of `with_multipliers`."""


class MupState(Wrapped):
    """State of `mup`."""


def with_multipliers(
    rule: AnyRule,
    lr: Mapping[str, float] | None = None,
    *,
    layers: str | None = None,
    layer_decay: float | None = None,
) -> Rule:
    r"""Multiplies the updates of some leaves, and with them their learning rate.

    The first glob that matches a leaf's path says how much; other leaves keep their updates. In a stack of
    $L$ layers along the first axis of a leaf, layer $l$ has $\gamma^{L-1-l}$ of the last one's rate:

        rule = jl.with_multipliers(rule, {"*embed*": 0.1}, layers="layers/*", layer_decay=0.9)

    Weight decay that the rule multiplies with its rate is multiplied too.

    Args:
      rule: any rule, its learning rate included.
      lr: glob -> factor >= 0.
      layers: a glob of the leaves that are stacked along a first axis of layers.
      layer_decay: $\gamma > 0$, from one layer to the one before.

    Returns:
      The rule; its state is `WithMultipliersState(inner, own)`.

    Raises:
      ValueError: a factor is out of range; layers and layer_decay are not given together; from `init`, a glob
        matches no leaf that no glob before it does.
      TypeError: rule is not a rule, or a factor is not a number.

    >>> rule = jl.with_multipliers(jl.sgd(1.0), {"a": 0.5})
    >>> params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    >>> updates, _ = rule.update(params, rule.init(params), params)
    >>> updates["a"].tolist(), updates["b"].tolist()
    ([-0.5], [-1.0])
    """
    who, factors = "with_multipliers", dict(lr or {})
    _check(who, rule, factors, layers, layer_decay)

    def by_path(path: str) -> tuple[float, float | None]:
        glob = first_match(list(factors), path)
        stacked = layers is not None and matches(layers, path)
        return (1.0 if glob is None else float(factors[glob])), (layer_decay if stacked else None)

    def step(shared: Any, u: Array, p: Any, kept: Any, place: Any) -> tuple[Array, Any]:
        del shared, p
        factor, decay = place
        if decay is None:
            return (u if factor == 1 else times(factor, u)), kept
        count = shape_of(u)[0]
        powers = factor * np.power(float(decay), np.arange(count - 1, -1, -1))
        axes = tuple(range(1, len(shape_of(u))))
        return times(along(jnp.asarray(powers, u.real.dtype), axes, u), u), kept

    stage = lift(who, Stage(step, needs="axes", by_path=by_path), chained=False)
    made = followed_by(who, rule, stage, WithMultipliersState, each_step=False)

    def init(params: Params) -> Any:
        paths, problems, unused = leaf_paths(params), Problems(who), set(factors)
        unused -= {first_match(list(factors), path) for path in paths}
        for glob in sorted(unused):
            near = f"the nearest are {nearest(glob, paths)}"
            problems.add(f"{glob!r} matches no leaf that no glob before it does", allowed=near)
        check_glob(problems, "layers", layers, paths, "parameter")
        problems.raise_if_any()
        return made.init(params)

    return make_rule(init, made.update)


def _check(who: str, rule: Any, factors: dict[str, Any], layers: Any, decay: Any) -> None:
    types, values = Problems(who), Problems(who)
    if not is_rule(rule):
        types.add(f"rule is not a rule, got {rule!r}")
    for glob, factor in factors.items():
        number_problem(f"lr[{glob!r}]", factor, NON_NEGATIVE, types, values)
    if (layers is None) != (decay is None):
        values.add(f"layers and layer_decay go together, got {layers!r} and {decay!r}")
    if decay is not None:
        number_problem("layer_decay", decay, POSITIVE, types, values)
    types.raise_if_any(TypeError)
    values.raise_if_any()


@dataclasses.dataclass(frozen=True)
class _Base:
    """What is known of a leaf of the base model: comparable, as a place must be."""

    shape: tuple[int, ...]
    transposed: bool
    stacked: bool


@checked
def mup(
    rule: Any,
    base_params: Any,
    *,
    optimizer: Annotated[str, OneOf("adam", "sgd")] = "adam",
    transposed: Glob | None = None,
    layers: Glob | None = None,
) -> Rule:
    r"""Learning rates of the maximal update parametrization: tuned on a narrow model, right for wide ones.

    Dimensions in which a leaf and that of `base_params` differ are width. With $r$ the ratio of the two fans,

    | leaf | fan in grows | fan out grows | "adam" | "sgd" |
    |---|---|---|---|---|
    | hidden matrix | yes | yes | $1/r_\text{in}$ | $1$ |
    | output matrix | yes | no | $1/r_\text{in}$ | $1/r_\text{in}$ |
    | input matrix, bias, gain | no | yes | $1$ | $r_\text{out}$ |

    The fan out is the last dimension, the fan in the one before it; earlier ones are stacks, whatever their
    size. "adam" is for rules whose updates do not grow with the gradient, "sgd" for those whose updates
    do.

    This scales rates. Initial values are the model's: of hidden matrices with a variance of 1/fan in, of
    output matrices 1/fan in squared (or zeros), of input matrices a constant; attention scores are divided
    by the size of a head, not its root. `docs/KNOBS.md` has the check of coordinates that shows whether
    all is right.

    Args:
      rule: any rule, its learning rate included.
      base_params: parameters, or shapes, of the narrow model, of the same structure.
      optimizer: "adam" or "sgd".
      transposed: a glob of matrices that are (out, in).
      layers: a glob of leaves that are stacked along a first axis, which is no width; matrices in a stack
        are known by their three dimensions.

    Returns:
      The rule; its state is `MupState(inner, own)`.

    Raises:
      TypeError: rule is not a rule.
      ValueError: from `init`, parameters that are not those of `base_params` but for their width.

    Source: Yang et al. 2022, arXiv:2203.03466, table 3.

    >>> base = {"hidden": jnp.ones((8, 8)), "bias": jnp.ones(8)}
    >>> params = {"hidden": jnp.ones((32, 32)), "bias": jnp.ones(32)}
    >>> rule = jl.mup(jl.sign_sgd(1.0), base)
    >>> updates, _ = rule.update(params, rule.init(params), params)
    >>> float(updates["hidden"][0, 0]), float(updates["bias"][0])
    (-0.25, -1.0)
    """
    check_rule("mup", rule)
    shapes = dict(zip(leaf_paths(base_params), map(np.shape, jax.tree.leaves(base_params)), strict=True))

    def by_path(path: str) -> _Base | None:
        shape = shapes.get(path)
        turned, stacked = (glob is not None and matches(glob, path) for glob in (transposed, layers))
        return None if shape is None else _Base(tuple(shape), turned, stacked)

    def step(shared: Any, u: Array, p: Any, kept: Any, place: Any = None) -> tuple[Array, Any]:
        del shared, p
        factor = 1.0 if place is None else width_multiplier(shape_of(u), place, optimizer)
        return (u if factor == 1 else times(factor, u)), kept

    stage = lift("mup", Stage(step, needs="axes", by_path=by_path), chained=False)
    made = followed_by("mup", rule, stage, MupState, each_step=False)

    def init(params: Params) -> Any:
        paths, problems = leaf_paths(params), Problems("mup")
        for path, x in zip(paths, jax.tree.leaves(params), strict=True):
            if path not in shapes:
                near = f"the nearest are {nearest(path, list(shapes))}"
                problems.add("the base model has no such parameter", at=path, allowed=near)
            elif len(shapes[path]) != np.ndim(x):
                wrong = f"the base model has another number of dimensions, got {tuple(np.shape(x))}"
                problems.add(wrong, at=path, allowed=f"it has {tuple(shapes[path])}")
        problems.raise_if_any()
        return made.init(params)

    return make_rule(init, made.update)


def width_multiplier(shape: tuple[int, ...], base: Any, optimizer: str) -> float:
    """What the rate of a leaf is multiplied with."""
    ratios = [n / b if b else 1.0 for n, b in zip(shape, base.shape, strict=True)]
    ratios = ratios[1:] if base.stacked else ratios
    if not ratios:
        return 1.0
    out, into = ratios[-1], (ratios[-2] if len(ratios) > 1 else 1.0)
    if base.transposed and len(ratios) > 1:
        out, into = into, out
    grows_in, grows_out = into != 1, out != 1
    if optimizer == "adam":
        return 1.0 / into
    if grows_in and not grows_out:
        return 1.0 / into
    return out if grows_out and not grows_in else 1.0
