"""What verdicts say of folds that are not as good as they should be."""

from typing import Any

import numpy as np


def fold_cautions(errors: Any, tolerance: float, names: Any, changes: str) -> tuple[str, ...]:
    """Say which fold has an error above its tolerance; nothing where none has.

    Parameters
    ----------
    errors : (N,)
        Of the fold of each spectrum; inf or NaN where it is of no use for some of the spectra tried.
    tolerance : float
        Largest error that is no matter.
    names : sequence of str
        Of the spectra; their numbers are told where there are none.
    changes : str
        What is changed by as much, such as ``"the log likelihood"``.

    Returns
    -------
    tuple of str
        A sentence at most, for the notes of a verdict.
    """
    errors = np.asarray(errors, float)
    above = ~(errors <= tolerance)
    if not above.any():
        return ()
    worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
    name = names[worst] if len(names) == len(errors) else f"number {worst + 1}"
    others = f", one of {above.sum()} such spectra of {len(errors)}" if above.sum() > 1 else ""
    size = f"up to {errors[worst]:.2g}" if np.isfinite(errors[worst]) else "more than can be told"
    return (
        f"the fold of spectrum {name} changes {changes} by {size}, measured over trial parameters, where {tolerance:g} "
        f"is aimed at{others}; narrow the priors, or judge by another model whether it matters",
    )
