"""The expansion history as model parameters: which are free, what their priors are, and how they are walked.

Supernovae (and in part bursts) leave a curved ridge in (Om0, w0): models along it predict nearly the same relative
distances. NUTS takes short steps on a curved ridge, so the parameters are sampled in coordinates that follow it
(`hbm_jax.distributions.CoordinatePriors`), while the priors on the parameters themselves stay exactly as stated.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.distributions import CoordinatePriors, SoftClip
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


# The ridge of supernova distances in flat universes, fitted to JLA's posterior: where w0 is and how wide, given Om0.
# Along it the posterior is close to a Gaussian in (1 - Om0)^(-3/2). It steers the sampler and cannot change what is
# sampled.
_RIDGE = (-0.126, -0.408, -2.0)  # w0 = -0.126 - 0.408 (1 - Om0)^(-2)
_WIDTH_POWER = -2.8
_HINGE = 0.3


def _w0_ridge(parameters):
    """w0 at which supernova distances stay about the same, and the width of the posterior about it up to a constant."""
    dark_energy = jnp.maximum(1.0 - parameters["Om0"], 0.2)  # a floor, to stay finite at the end of the prior's range
    loc = _RIDGE[0] + _RIDGE[1] * dark_energy ** _RIDGE[2] - 0.2 * parameters.get("wa", 0.0)
    return loc, dark_energy**_WIDTH_POWER


class _MatterBijection:
    """Om0 in [low, high] from a real number, straight in (1 - 0.9 Om0)^(-3/2) away from the bounds, high <= 1.

    The factor 0.9 bounds the range for high = 1, without which a sample that says little would wander off towards 1.
    """

    def __init__(self, low: float, high: float):
        self._clip = SoftClip(self._straight(low), self._straight(high), _HINGE)

    @staticmethod
    def _straight(matter):
        return (1.0 - 0.9 * matter) ** -1.5

    def __call__(self, y):
        return (1.0 - self._clip(y) ** (-2.0 / 3.0)) / 0.9

    def inv(self, x):
        return self._clip.inv(self._straight(x))

    def log_abs_det_jacobian(self, y, x):
        straight = self._clip(y)
        log_slope = math.log(2.0 / 3.0 / 0.9) - (5.0 / 3.0) * jnp.log(straight)
        return self._clip.log_abs_det_jacobian(y, straight) + log_slope


def sample_cosmology(name: str, priors: Mapping[str, Prior]) -> Cosmology:
    """Sample sites of a named expansion history.

    Parameters
    ----------
    name : str
        One of ``lcdm, olcdm, wcdm, owcdm, w0wacdm``.
    priors : mapping of str to Distribution or float
        H0 and the parameters of ``FREE[name]``; a number fixes a parameter.

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
        coordinates = CoordinatePriors(free, *_straightening(free, fixed))
        values |= coordinates.parameters(numpyro.sample("_cosmology", coordinates))
    for parameter in free:
        numpyro.deterministic(parameter, values[parameter])
    cosmology = cosmology_from(name, {"H0": hubble} | values)
    if "Ode0" in values and free.keys() & {"Om0", "Ode0"}:
        numpyro.deterministic("Ok0", cosmology.Ok0)
    return cosmology


def _straightening(free, fixed) -> tuple[dict, dict]:
    """Ridges and bijections for the free parameters."""
    if "w0" not in free or "Om0" not in free or "Ode0" in free:
        # With curvature too, JLA's posterior fills the priors' box; following a ridge into its walls was worse.
        return {}, {}
    low, high = (float(getattr(free["Om0"].support, f"{end}_bound", math.nan)) for end in ("lower", "upper"))
    bijections = {"Om0": _MatterBijection(low, high)} if low >= 0.0 and high <= 1.0 else {}
    return {"w0": lambda parameters: _w0_ridge(fixed | parameters)}, bijections


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
