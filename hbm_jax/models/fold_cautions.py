"""Sentences of verdicts about folds whose error exceeds their tolerance."""

from typing import Any

import numpy as np


def fold_cautions(errors: Any, tolerance: float, names: Any, changes: str) -> tuple[str, ...]:
    """Return a sentence about the spectrum with the largest folding error, if any error is above the tolerance.

    Parameters
    ----------
    errors : (N,)
        Folding error of each spectrum; inf or NaN where the fold failed for some of the trial parameters.
    tolerance : float
        Largest error that needs no caution.
    names : sequence of str
        Names of the spectra; numbers are written in their place where this is empty.
    changes : str
        The quantity that the error changes, such as ``"the log likelihood"``.

    Returns
    -------
    tuple of str
        At most one sentence, for the notes of a verdict.
    """
    errors = np.asarray(errors, float)
    above = ~(errors <= tolerance)
    if not above.any():
        return ()
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    name = names[worst] if len(names) == len(errors) else f"number {worst + 1}"
    others = f", one of {above.sum()} such spectra of {len(errors)}" if above.sum() > 1 else ""
    size = f"up to {errors[worst]:.2g}" if np.isfinite(errors[worst]) else "an amount that cannot be measured"
    return (
        f"the fold of spectrum {name} changes {changes} by {size} over trial parameters, above the tolerance of "
        f"{tolerance:g}{others}; narrow the priors, or check the result with another model",
    )
