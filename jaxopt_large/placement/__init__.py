"""Which device holds which part of the state."""
