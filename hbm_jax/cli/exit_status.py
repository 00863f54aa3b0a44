"""Exit statuses of the command line, and verdicts in its words."""

import re

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


def in_flags(text: str) -> str:
    """Return the text of a verdict with the flags of the command line for the keywords of Python that it names."""
    text = re.sub(r"sampler=hbm_jax\.\w+\((\w+)=([^()]+)\)", r"\1=\2", text)
    text = re.sub(r"sampler=hbm_jax\.(\w+)\(\)", lambda match: f"--sampler {match[1].lower()}", text)
    return re.sub(
        r'\b(target_accept_prob|max_tree_depth|dtype)="?([\w.]+\w)"?',
        lambda match: f"--{match[1].replace('_', '-')} {match[2]}",
        text,
    )
