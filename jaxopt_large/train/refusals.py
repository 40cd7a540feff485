"""What a rule, a model or the devices refuse, said as a run says it."""

from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import message
from ._errors import RunError


@contextmanager
def refusals(of: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """What the rule, the model or the devices refuse, as an error of the run."""
    try:
        yield
    except of as error:
        text = str(error)
        if isinstance(error, MemoryError) or "out of memory" in text.lower() or "RESOURCE_EXHAUSTED" in text:
            reason = " ".join(text.split())[:200]
            do = "Lower train.batch, raise train.accumulate, or take more devices"
            raise RunError(message("train", f"out of memory ({reason})", do=do)) from error
        if isinstance(error, RunError) or not isinstance(error, ValueError | TypeError):
            raise
        raise RunError(text) from error
