"""Influence of groups of observations: the posterior without each group, in one batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpyro.primitives import Messenger

from hbm_jax.inference.batch.fit_each import fit_each
from hbm_jax.inference.batch.results import Fits
from hbm_jax.inference.program import bound_args

ALL = "all"


def leave_groups_out(program: Callable, data: Any, groups: Sequence, *, site: str = "observed", **options: Any) -> Fits:
    """Sample the posterior of all data, and those without each group in turn, in one batch.

    Parameters
    ----------
    program : callable
        A NumPyro program of one argument, with an observed site of N observations, one per object.
    data : any
        Argument of the program.
    groups : sequence of length N
        The group of each observation, such as ``sne.survey``.
    site : str
        Name of the observed site.
    **options
        Options of `hbm_jax.fit_each`.

    Returns
    -------
    Fits
        Objects ``"all"`` and ``"without <group>"``, in the order in which groups first appear.

    Raises
    ------
    ValueError
        If there are fewer than two groups, or if the number of labels differs from the number of observations.

    Notes
    -----
    Latents and parameters of the observations left out remain in the program and follow their priors.

    Examples
    --------
    >>> fits = leave_groups_out(model, sne, sne.survey)  # doctest: +SKIP
    """
    labels = [str(group) for group in groups]
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        raise ValueError(f"leave_groups_out: expected two groups or more; found {', '.join(names) or 'none'}.")
    masks = [np.array([label != name for label in labels]) for name in (None, *names)]
    objects = [(data, mask) for mask in masks]
    return fit_each(
        _MaskedProgram(program, site), objects, names=[ALL, *(f"without {name}" for name in names)], **options
    )


class _MaskedProgram:
    """Program with a mask of an observed site as second argument."""

    def __init__(self, program, site):
        self.program, self.site = program, site

    def bind(self, data, used):
        """Return the bound data of the program, and the mask."""
        return self.bind_each([(data, used)])[0]

    def bind_each(self, objects):
        """Bind the data once, because they are the same for every object."""
        (bound,) = bound_args(self.program, objects[0][:1])
        return [(bound, used) for _, used in objects]

    def __call__(self, bound):
        """Run the program with bound data and the mask."""
        data, used = bound
        with _MaskSite(self.site, used):
            self.program(data)


class _MaskSite(Messenger):
    """Handler that masks one site."""

    def __init__(self, site, used):
        super().__init__()
        self.site, self.used = site, used

    def process_message(self, msg):
        """Mask the site; raise ValueError if the mask does not have its shape."""
        if msg["type"] == "sample" and msg["name"] == self.site:
            if msg["fn"].batch_shape != np.shape(self.used):
                raise ValueError(
                    f"leave_groups_out: expected one group for each of {msg['fn'].batch_shape} observations of "
                    f"{self.site!r}; found {np.shape(self.used)}."
                )
            msg["fn"] = msg["fn"].mask(self.used)
