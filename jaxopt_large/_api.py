"""The public surface."""

from optax import lbfgs as lbfgs

from . import plan as plan
from . import rules as rules
from ._global_norm import global_norm as global_norm
from .accumulation import accumulate as accumulate
from .accumulation import flush as flush
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import RestoreReport as RestoreReport
from .checkpoint import convert as convert
from .checkpoint import read_metadata as read_metadata
from .checkpoint import restore as restore
from .checkpoint import restore_changed as restore_changed
from .checkpoint import save as save
from .evaluation import evaluation_params as evaluation_params
from .explanation import explain as explain
from .fused.apply import apply as apply
from .fused.explain import explain_apply as explain_apply
from .groups import freeze as freeze
from .groups import partition as partition
from .guards import adaptive_grad_clip as adaptive_grad_clip
from .guards import clip_by_block_rms as clip_by_block_rms
from .guards import clip_by_ema_norm as clip_by_ema_norm
from .guards import clip_per_leaf as clip_per_leaf
from .guards import clip_updates as clip_updates
from .guards import dynamic_loss_scale as dynamic_loss_scale
from .guards import loss_scale as loss_scale
from .guards import roll_back as roll_back
from .guards import rollback as rollback
from .guards import skip_spikes as skip_spikes
from .hyperparameters import hyperparams as hyperparams
from .hyperparameters import learning_rate as learning_rate
from .hyperparameters import set_hyperparams as set_hyperparams
from .hyperparameters import with_hyperparams as with_hyperparams
from .matrix import roles as roles
from .microbatches import microbatched_grad as microbatched_grad
from .microbatches import microbatched_value_and_grad as microbatched_value_and_grad
from .multipliers import mup as mup
from .multipliers import with_multipliers as with_multipliers
from .placement.mapped_specs import mapped_state_specs as mapped_state_specs
from .placement.offload import offload as offload
from .placement.per_device import replicate as replicate
from .placement.per_device import to_global as to_global
from .placement.per_device import to_per_device as to_per_device
from .placement.per_device import unreplicate as unreplicate
from .placement.shardings import abstract_state as abstract_state
from .placement.shardings import gradient_shardings as gradient_shardings
from .placement.shardings import init_state as init_state
from .placement.shardings import state_shardings as state_shardings
from .placement.shardings import state_specs as state_specs
from .placement.zero import zero as zero
from .privacy import noise_for_budget as noise_for_budget
from .privacy import privacy_spent as privacy_spent
from .privacy import private_gradients as private_gradients
from .rules.every import *
from .safety import clip_by_global_norm as clip_by_global_norm
from .safety import skip_nonfinite as skip_nonfinite
from .schedules import *
from .storage.formats import *
from .storage.report import storage_report as storage_report
from .storage.stored import stored as stored
from .wrappers.every import *
