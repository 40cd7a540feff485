"""Wrappers that change what a rule does: masks, averages, other gradients; one file each."""
