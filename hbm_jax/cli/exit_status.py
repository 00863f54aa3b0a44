"""Exit statuses of the command line."""

USABLE = 0  # usable posterior, calibrated model, or a command without a verdict
BAD_INPUT = 2  # or full disk
NOT_USABLE = 3
MISFIT = 4  # usable posterior of a model from which the data do not look like draws
INTERRUPTED = 130  # as shells report termination by Ctrl-C


def status_of(verdict) -> int:
    """Return the exit status of both lines of a verdict."""
    if not verdict.usable:
        return NOT_USABLE
    return USABLE if verdict.model is None or verdict.model.passed is not False else MISFIT
