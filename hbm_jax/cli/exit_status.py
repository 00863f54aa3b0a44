"""Exit statuses of the command line."""

USABLE = 0  # or calibrated, or nothing to judge
BAD_INPUT = 2  # or a full disk
NOT_USABLE = 3
INTERRUPTED = 130  # as shells report a program ended by Ctrl-C
