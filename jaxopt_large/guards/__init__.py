"""What keeps a bad step from doing harm: clipping by leaf, block or history, spikes, scales of losses."""

from .clipping import adaptive_grad_clip as adaptive_grad_clip
from .clipping import clip_by_block_rms as clip_by_block_rms
from .clipping import clip_per_leaf as clip_per_leaf
from .clipping import clip_updates as clip_updates
from .ema_norm import clip_by_ema_norm as clip_by_ema_norm
from .loss_scale import DynamicLossScaleState as DynamicLossScaleState
from .loss_scale import dynamic_loss_scale as dynamic_loss_scale
from .loss_scale import loss_scale as loss_scale
from .rollback import roll_back as roll_back
from .rollback import rollback as rollback
from .spikes import SkipSpikesState as SkipSpikesState
from .spikes import skip_spikes as skip_spikes

# what a configuration can put around its rules, or before them
GUARDS = {
    make.__name__: make
    for make in (
        adaptive_grad_clip,
        clip_by_block_rms,
        clip_by_ema_norm,
        clip_per_leaf,
        clip_updates,
        dynamic_loss_scale,
        skip_spikes,
    )
}

__all__ = [
    "adaptive_grad_clip",
    "clip_by_block_rms",
    "clip_by_ema_norm",
    "clip_per_leaf",
    "clip_updates",
    "dynamic_loss_scale",
    "loss_scale",
    "roll_back",
    "rollback",
    "skip_spikes",
]
