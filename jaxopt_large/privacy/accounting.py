"""How much of a privacy budget training spends: dp-accounting's numbers, for DP-SGD."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

from .._errors import NON_NEGATIVE, POSITIVE, Problems, Range, message, number_problem

Method = Literal["pld", "rdp"]
_RATE = Range("a number in (0, 1]", lambda x: 0 < x <= 1)
_DELTA = Range("a number in (0, 1)", lambda x: 0 < x < 1)
_ORDERS = (*range(2, 65), 80, 128, 256, 512)  # whole ones: quick, and a bound that is a little larger
_LEAST, _MOST = 0.05, 1e4  # noise multipliers between which a budget is looked for


def privacy_spent(
    *, sampling_rate: float, noise_multiplier: float, steps: int, delta: float, method: Method = "pld"
) -> float:
    r"""The $\varepsilon$ of $(\varepsilon, \delta)$-differential privacy after steps of `private_gradients`.

    It holds where each step's batch is a Poisson sample: every example is in it with the sampling rate,
    whatever else is. Neighbors are data sets of which one has an example more.

    Args:
      sampling_rate: in (0, 1]: the expected batch over the number of examples.
      noise_multiplier: $\sigma$ of `private_gradients`.
      steps: how many were made.
      delta: $\delta$ in (0, 1), well below 1 over the number of examples.
      method: "pld", privacy loss distributions, which are tight (Koskela et al. 2020), or "rdp", Rényi
        differential privacy (Mironov 2017), a larger bound.

    Returns:
      $\varepsilon$; infinity without noise.

    Raises:
      ValueError: a number is out of range.
      ImportError: dp-accounting is not installed; it is the extra `privacy`.

    >>> round(jl.privacy_spent(sampling_rate=0.01, noise_multiplier=1.0, steps=1000, delta=1e-5), 4)
    1.8282
    """
    noise = (noise_multiplier, NON_NEGATIVE)
    _check("privacy_spent", sampling_rate, steps, delta, method, noise_multiplier=noise)
    return _spent(_library(), sampling_rate, noise_multiplier, steps, delta, method)


def noise_for_budget(
    *, epsilon: float, sampling_rate: float, steps: int, delta: float, method: Method = "pld"
) -> float:
    """The least noise multiplier with which training stays within a budget.

    Args:
      epsilon: the budget, above 0.
      sampling_rate: as `privacy_spent` has it, like all that follows.
      steps: how many are to be made.
      delta: in (0, 1).
      method: "pld" or "rdp".

    Returns:
      The noise multiplier, to one part in 10,000 above the least; 0.05 at least.

    Raises:
      ValueError: a number is out of range; or no noise up to 10,000 is enough.
      ImportError: dp-accounting is not installed.

    >>> noise = jl.noise_for_budget(epsilon=1.8282, sampling_rate=0.01, steps=1000, delta=1e-5)
    >>> round(noise, 2)
    1.0
    """
    who = "noise_for_budget"
    _check(who, sampling_rate, steps, delta, method, epsilon=(epsilon, POSITIVE))
    library = _library()

    def fits(noise: float, method: Method = method, orders: Any = None) -> bool:
        return _spent(library, sampling_rate, noise, steps, delta, method, orders) <= epsilon

    if steps == 0:
        return 0.0
    enough = _LEAST
    while not fits(enough, "rdp", _ORDERS):  # quick, and never too little
        enough *= 2
        if enough > _MOST:
            wrong_text = f"no noise keeps {steps} steps within the budget, got epsilon={epsilon!r}"
            raise ValueError(message(who, wrong_text, do="Make fewer steps, or sample less"))
    enough = _least(lambda noise: fits(noise, "rdp", _ORDERS), enough / 2, enough)
    if enough <= _LEAST:
        return enough
    low = 0.9 * enough  # tight ones take long, and much memory where there is little noise
    while low > _LEAST and fits(low):
        enough, low = low, 0.9 * low
    return _least(fits, low, enough)


def steps_within(
    *,
    epsilon: float,
    sampling_rate: float,
    noise_multiplier: float,
    most: int,
    delta: float,
    method: Method = "pld",
) -> int:
    """The most steps, up to `most`, that stay within a budget.

    Args:
      epsilon: the budget.
      sampling_rate: as `privacy_spent` has it.
      noise_multiplier: likewise.
      most: how many are asked for.
      delta: likewise.
      method: likewise.
    """
    given: dict[str, Any] = {"sampling_rate": sampling_rate, "noise_multiplier": noise_multiplier}
    given |= {"delta": delta, "method": method}
    low, high = 0, most + 1  # the first fits, the second need not
    if privacy_spent(steps=most, **given) <= epsilon:
        return most
    while high - low > 1:
        middle = (low + high) // 2
        fits = privacy_spent(steps=middle, **given) <= epsilon
        low, high = (middle, high) if fits else (low, middle)
    return low


def _least(fits: Callable[[float], bool], low: float, high: float) -> float:
    """The least that fits, between one that may not and one that does, to 1e-4 above."""
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _spent(
    library: Any, rate: float, noise: float, steps: int, delta: float, method: Method, orders: Any = None
) -> float:
    if steps == 0:
        return 0.0
    if noise == 0:
        return float("inf")
    accounting, kinds = library
    one = accounting.GaussianDpEvent(float(noise))
    event = one if rate == 1 else accounting.PoissonSampledDpEvent(float(rate), one)
    accountant = kinds[method]() if orders is None else kinds[method](orders)
    with _quietly():
        accountant.compose(event, int(steps))
        return float(accountant.get_epsilon(float(delta)))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without a warning for each order that a sum does not converge for: the others bound as well."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _library() -> Any:
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ImportError:
        do = "Install jaxopt_large with the extra `privacy`, or dp-accounting beside it"
        raise ImportError(message("privacy", "dp-accounting is not installed", do=do)) from None
    return dp_accounting, {"pld": pld.PLDAccountant, "rdp": rdp.RdpAccountant}


def _check(who: str, rate: Any, steps: Any, delta: Any, method: Any, **more: tuple[Any, Range]) -> None:
    """Raises for what no account can be made of; all of it at once."""
    types, wrong = Problems(who), Problems(who)
    for name, (value, allowed) in {"sampling_rate": (rate, _RATE), "delta": (delta, _DELTA), **more}.items():
        number_problem(name, value, allowed, types, wrong)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        types.add(f"steps is no number of steps, got {steps!r}", allowed="a whole number >= 0")
    if method not in ("pld", "rdp"):
        wrong.add(f"method is unknown, got {method!r}", allowed="'pld' or 'rdp'")
    if types.found:
        types.found += wrong.found
    types.raise_if_any(TypeError)
    wrong.raise_if_any()
