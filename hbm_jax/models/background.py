"""The expansion history as model parameters: which are free, what their priors are, and how they are walked."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.distributions import CoordinatePriors
from hbm_jax.models.priors import Prior

# Free parameters of each named expansion history, the one that follows the others along the ridge last.
FREE = {
    "lcdm": ("Om0",),
    "olcdm": ("Om0", "Ode0"),
    "wcdm": ("Om0", "w0"),
    "owcdm": ("Om0", "Ode0", "w0"),
    "w0wacdm": ("Om0", "wa", "w0"),
}

DEFAULT_PRIORS: dict[str, Prior] = {
    "Om0": dist.Uniform(0.0, 1.0),
    "Ode0": dist.Uniform(0.0, 1.2),
    "w0": dist.Uniform(-3.0, 0.0),
    "wa": dist.Uniform(-3.0, 2.0),
}

DESCRIPTIONS = {
    "lcdm": "flat LCDM",
    "olcdm": "LCDM with curvature",
    "wcdm": "flat wCDM",
    "owcdm": "wCDM with curvature",
    "w0wacdm": "flat w0waCDM",
}


def default_priors(name: str) -> dict[str, Prior]:
    """Priors of the named expansion history, H0 held at 70 km/s/Mpc (it is degenerate with M0 without an anchor)."""
    return {"H0": 70.0} | {parameter: DEFAULT_PRIORS[parameter] for parameter in FREE[name]}


Ridge: TypeAlias = Callable[[Mapping[str, dist.Distribution], Mapping[str, float]], tuple[dict, dict]]


def sample_cosmology(name: str, priors: Mapping[str, Prior], ridge: Ridge | None = None) -> Cosmology:
    """Sample sites of a named expansion history.

    Parameters
    ----------
    name : str
        One of ``lcdm, olcdm, wcdm, owcdm, w0wacdm``.
    priors : mapping of str to Distribution or float
        H0 and the parameters of ``FREE[name]``; a number fixes a parameter.
    ridge : callable, optional
        Given the free parameters' priors and the fixed ones' values, returns the ridges and bijections of
        `hbm_jax.distributions.CoordinatePriors`: coordinates that follow the ridge which the model's kind of data
        leaves in the posterior. It steers the sampler and cannot change what is sampled.

    Returns
    -------
    Cosmology
        With traced parameters. Named sites ``Om0, Ode0, w0, wa`` are recorded (and ``Ok0`` where it is free).
    """
    hubble = priors["H0"]
    hubble = numpyro.sample("H0", hubble) if isinstance(hubble, dist.Distribution) else hubble
    values: dict[str, Any] = {parameter: priors[parameter] for parameter in FREE[name]}
    free = {p: prior for p, prior in values.items() if isinstance(prior, dist.Distribution)}
    if free:
        fixed = {p: value for p, value in values.items() if p not in free}
        coordinates = CoordinatePriors(free, *(ridge(free, fixed) if ridge is not None else ({}, {})))
        values |= coordinates.parameters(numpyro.sample("_cosmology", coordinates))
    for parameter in free:
        numpyro.deterministic(parameter, values[parameter])
    cosmology = cosmology_from(name, {"H0": hubble} | values)
    if "Ode0" in values and free.keys() & {"Om0", "Ode0"}:
        numpyro.deterministic("Ok0", cosmology.Ok0)
    return cosmology


def cosmology_from(name: str, values: Mapping[str, Any]) -> Cosmology:
    """Cosmology of a named expansion history at given parameter values.

    Parameters
    ----------
    name : str
        One of ``lcdm, olcdm, wcdm, owcdm, w0wacdm``.
    values : mapping of str to number
        H0 and the parameters of ``FREE[name]``; others are ignored.

    Returns
    -------
    Cosmology

    Examples
    --------
    >>> cosmology_from("wcdm", {"H0": 70.0, "Om0": 0.3, "w0": -0.9, "M0": -19.0}).Ode0
    0.7
    """
    own = {parameter: values[parameter] for parameter in ("H0", *FREE[name])}
    return Cosmology(**own) if "Ode0" in own else Cosmology.flat(**own)
