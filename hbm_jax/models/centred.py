"""Normal latents sampled as centred as their data ask for, where a model can tell from the data alone.

Between the centred form of a latent u ~ N(m, t^2) and the non-centred one is x ~ N(c m, t0^2 (t / t0)^(2c)) with
u = m + (t / t0)^(1 - c) (x - c m), whatever c and t0; data of information I ask for c = t^2 I / (1 + t^2 I). See
`hbm_jax.inference.centre`, which finds c by a pilot run.
"""

from typing import Any

import numpy as np
import numpyro
from numpyro import distributions as dist

Form = tuple[np.ndarray, Any]  # centredness of each element, and the scale it refers to


def form(information, scale: float, few: bool = False) -> Form:
    """Centredness of each element, and the scale t0 it refers to.

    Parameters
    ----------
    information : (...)
        Of the data about each element: the inverse square of its error.
    scale : float
        Standard deviation of the population, as well as it is known.
    few : bool
        Of few elements the scale may be next to 0: take the mean centredness over scales up to twice that.
    """
    scales = scale * (np.linspace(0.05, 1.95, 20) if few else np.ones(1))
    known = np.maximum(information, 0.0) * scales.reshape(-1, *(1,) * np.ndim(information)) ** 2
    return np.mean(known / (1.0 + known), axis=0), float(scale)


def form_of(estimates, information) -> Form:
    """Centredness by estimates of the elements with their information, (n,) both, and what they say of the scale.

    That of the smallest scale t the estimates leave, their 1 per cent quantile under a prior that is flat up to twice
    their spread: where t may be next to 0, nothing is centred and there is no funnel.
    """
    information = np.maximum(np.asarray(information, float), 1e-12)
    variance = 1.0 / information
    largest = 2.0 * max(float(np.sqrt(np.average((estimates - np.mean(estimates)) ** 2, weights=information))), 1e-3)
    scales = largest * (np.arange(60) + 0.5) / 60
    total = scales[:, None] ** 2 + variance
    mean = (estimates / total).sum(axis=1) / (1.0 / total).sum(axis=1)
    log = -0.5 * (np.log(total) + (estimates - mean[:, None]) ** 2 / total).sum(axis=1)
    log -= 0.5 * np.log((1.0 / total).sum(axis=1))
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    known = scales[np.searchsorted(np.cumsum(weights), 0.01)] ** 2 * information
    return known / (1.0 + known), float(np.exp(weights @ np.log(scales)))


def form_of_some(estimates, information, some) -> Form:
    """Centredness where only the data of ``some`` elements, (n,) bool, tell something; the others are not centred."""
    if some.sum() < 3:
        return form(np.where(some, information, 0.0), 0.3, few=True)
    chosen, reference = form_of(estimates[some], information[some])
    every = np.zeros(len(information))
    every[some] = chosen
    return every, reference


def sample_centred(name: str, location, scale, chosen: Form, shift: Any = 0.0):
    """Sample a normal latent in that form, as site ``_name``; its value, recorded as ``name``.

    Parameters
    ----------
    name : str
        Of the latent.
    location, scale : (...)
        Of its distribution.
    chosen : Form
        Of `form`.
    shift : (...)
        A part of the location that is not to depend on the centredness, such as the data's own estimate.
    """
    c, reference = chosen
    ratio = scale / reference
    location = location - shift
    x = numpyro.sample(f"_{name}", dist.Normal(c * location, reference * ratio**c))
    return numpyro.deterministic(name, location + ratio ** (1.0 - c) * (x - c * location) + shift)
