"""With which settings the contracts try a rule."""


def tried(rate=0.01, peer=None, unlike="", notes=(), **settings):
    """Marks an oracle with the settings of its rule.

    Args:
      rate: the learning rate.
      peer: the name that optax has for the rule, if another; False where it has none that is the same.
      unlike: why optax's differs, where it does.
      notes: what the contracts must know: "rate inside" (it is not the direction times the rate), "no schedule"
        (the rate is a number), "goes on" (old gradients move parameters when the rate is 0), "keeps going"
        (parameters move without a gradient), "whole leaves" (an element depends on others), "all leaves",
        "random", "saturates" (of gradients beyond a float32's root the step is not in proportion), "value" (`update`
        needs the loss).
      **settings: further arguments.
    """

    def mark(oracle):
        oracle.rate, oracle.peer, oracle.settings = rate, oracle.__name__ if peer is None else peer, settings
        oracle.unlike, oracle.notes = unlike, frozenset(notes)
        return oracle

    return mark
