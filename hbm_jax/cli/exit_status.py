"""Exit statuses of the command line."""

USABLE = 0  # usable posterior, calibrated model, or a command without a verdict
BAD_INPUT = 2  # or full disk
NOT_USABLE = 3
INTERRUPTED = 130  # as shells report termination by Ctrl-C
