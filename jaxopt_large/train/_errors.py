"""What a user can mend about a run."""


class RunError(ValueError):
    """A run cannot start or go on; the message says why and what to do."""


class RunWriteError(RunError):
    """A file of a run could not be written; the message says what is safe."""
