"""Learning-rate schedules: optax's, those that it lacks, and schedules of schedules.

A schedule is a function from the number of steps taken to a value. It takes Python's, NumPy's and JAX's
integers, and traced ones; ours are computed in float32, in float64 under x64.
"""

from ._optax import constant_schedule as constant_schedule
from ._optax import cosine_decay_schedule as cosine_decay_schedule
from ._optax import cosine_onecycle_schedule as cosine_onecycle_schedule
from ._optax import exponential_decay as exponential_decay
from ._optax import join_schedules as join_schedules
from ._optax import linear_onecycle_schedule as linear_onecycle_schedule
from ._optax import linear_schedule as linear_schedule
from ._optax import piecewise_constant_schedule as piecewise_constant_schedule
from ._optax import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from ._optax import polynomial_schedule as polynomial_schedule
from ._optax import sgdr_schedule as sgdr_schedule
from ._optax import warmup_constant_schedule as warmup_constant_schedule
from ._optax import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from ._optax import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from .combinators import join as join
from .combinators import scaled_by_batch as scaled_by_batch
from .combinators import warmup as warmup
from .cycles import cyclic as cyclic
from .cycles import one_cycle as one_cycle
from .decays import inverse_sqrt as inverse_sqrt
from .decays import power as power
from .decays import warmup_stable_decay as warmup_stable_decay

# this is the list of them
SCHEDULES = (
    constant_schedule,
    cosine_decay_schedule,
    cosine_onecycle_schedule,
    cyclic,
    exponential_decay,
    inverse_sqrt,
    join,
    join_schedules,
    linear_onecycle_schedule,
    linear_schedule,
    one_cycle,
    piecewise_constant_schedule,
    piecewise_interpolate_schedule,
    polynomial_schedule,
    power,
    scaled_by_batch,
    sgdr_schedule,
    warmup,
    warmup_constant_schedule,
    warmup_cosine_decay_schedule,
    warmup_exponential_decay_schedule,
    warmup_stable_decay,
)

__all__ = [make.__name__ for make in SCHEDULES]
