"""Type Ia supernova cosmology from SALT parameters: the Tripp relation with its latent populations.

Each supernova has a true stretch, colour and magnitude,

    x1 ~ N(x1_mean, x1_std^2),   c ~ N(c_mean, c_std^2),
    m_b = M0 + mu(z; cosmology) - alpha x1 + beta c + delta_M [host mass > 1e10 Msun] + N(0, sigma_int^2),

and is observed with the 3x3 covariance of its light-curve fit, to which lensing and peculiar velocities add in m_b.
(Tripp 1998, A&A 331, 815; March et al. 2011, MNRAS 418, 2308; Rubin et al. 2015, ApJ 813, 137.)
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology, RedshiftMatrix, breaks_of
from hbm_jax.data import DataError, Supernovae
from hbm_jax.distributions import LinearGaussian
from hbm_jax.models import background
from hbm_jax.models.priors import Prior, choose, complete_priors, sample_prior
from hbm_jax.models.protocol import configuration, simulated
from hbm_jax.models.supernova_ridge import supernova_ridge

LATENTS = ("marginal", "sampled", "noncentred", "centred")
OBSERVABLES = ("x1", "c", "m_b")  # the order in which the loading matrix is triangular

# Weakly informative: some ten times wider than what any modern sample finds, except where a scale is known.
DEFAULT_PRIORS: dict[str, Prior] = {
    "M0": dist.Normal(-19.3, 1.0),
    "alpha": dist.Normal(0.0, 0.5),
    "beta": dist.Normal(0.0, 5.0),
    "delta_M": dist.Normal(0.0, 0.2),
    "sigma_int": dist.HalfNormal(0.3),
    "x1_mean": dist.Normal(0.0, 1.0),
    "x1_std": dist.HalfNormal(2.0),
    "c_mean": dist.Normal(0.0, 0.2),
    "c_std": dist.HalfNormal(0.3),
}

UNITS = {
    "H0": "km/s/Mpc",
    "M0": "mag",
    "alpha": "mag",
    "delta_M": "mag",
    "sigma_int": "mag",
    "c_mean": "mag",
    "c_std": "mag",
    "c_true": "mag",
    "m_b_true": "mag",
}


class Standardised(NamedTuple):
    """Magnitudes that stretch, colour and host would leave alike [mag]: value and variance of each supernova."""

    m_b: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Supernova:
    """Hierarchical model of type Ia supernovae; calling it with data is a NumPyro program.

    Parameters
    ----------
    cosmology : str or Expansion
        ``"lcdm"`` (flat), ``"olcdm"`` (with curvature), ``"wcdm"`` (flat), ``"owcdm"``, ``"w0wacdm"`` (flat),
        ``"binned(0.3, 0.7)"`` (flat, w constant in bins of redshift), or a user's own `hbm_jax.models.Expansion`.
    latents : str
        How the true x1, c and m_b of each supernova are treated: ``"marginal"`` integrates them out exactly and
        samples the global parameters alone; ``"sampled"`` samples three per supernova, each as centred as a pilot run
        finds best, ``"noncentred"`` and ``"centred"`` in those forms. All give the same posterior.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name; a number holds the parameter fixed. See `Supernova.all_priors` for the defaults.
        H0 is held at 70 km/s/Mpc unless given a prior: without an anchor it is degenerate with M0.
    mass_step : bool
        Whether hosts above 1e10 solar masses have their own magnitude offset delta_M. JLA's placeholder for hosts
        without a measured mass counts as low mass, as in Betoule et al. 2014.

    Raises
    ------
    ValueError
        For an unknown cosmology, latents or prior name; the nearest known one is offered.

    Notes
    -----
    The coherent scatter that a published error of m_b may hold (`Supernovae.variance_coherent`) is left out, because
    sigma_int is that scatter; lensing and peculiar-velocity variances are kept.

    Examples
    --------
    >>> Supernova(cosmology="wcdm", priors={"Om0": "Normal(0.3, 0.05)"}).all_priors["Om0"].loc
    0.3
    """

    cosmology: str | background.Expansion = field(default="lcdm", metadata={"help": background.HELP})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)
    mass_step: bool = field(default=True, metadata={"help": "whether massive hosts have a magnitude of their own"})

    def __post_init__(self):
        background.expansion(self.cosmology)  # raises for unknown names
        choose("treatment of latents", self.latents, LATENTS)
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number is a parameter held fixed."""
        defaults = background.default_priors(self.cosmology) | DEFAULT_PRIORS
        if not self.mass_step:
            del defaults["delta_M"]
        return complete_priors(defaults, self.priors, f"Supernova(cosmology={self.cosmology!r})")

    def __call__(self, data: Supernovae, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : Supernovae
            The sample. With ``observed=False`` its redshifts, errors and host masses are the design, and the
            observed (x1, c, m_b) are drawn.
        observed : bool
            Whether to condition on the observed values.
        recover : bool
            With marginal latents, also draw each supernova's x1_true, c_true, m_b_true from their exact conditional.
        """
        priors = self.all_priors
        cosmology = background.sample_cosmology(self.cosmology, priors, supernova_ridge)
        parameters = {name: sample_prior(name, priors[name]) for name in DEFAULT_PRIORS if name in priors}
        modulus = self.distmod(data, cosmology)
        if observed:
            # A universe without a big bang is impossible; a NaN would be an accident, and spoil gradients elsewhere.
            possible = jnp.all(jnp.isfinite(modulus))
            numpyro.factor("_big_bang", jnp.where(possible, 0.0, -jnp.inf))
            modulus = jnp.where(possible, modulus, 0.0)
        magnitude = modulus + parameters["M0"] + self._host_step(data, parameters)
        values = _observations(data) if observed else None
        with numpyro.plate("supernova", len(data)):
            if self.latents == "marginal":
                marginal = _marginal(parameters, magnitude, _noise(data))
                values = numpyro.sample("observed", marginal, obs=values)
                if recover:
                    latent = numpyro.sample("_latent", marginal.conditional(values))
                    for index, name in enumerate(OBSERVABLES):
                        numpyro.deterministic(f"{name}_true", latent[..., index])
                return
            truth = self._latent_sites(parameters, magnitude)
            none = jnp.zeros((3, 0))
            noise = LinearGaussian(jnp.zeros(0), jnp.zeros((0, 0)), _noise(data), loading=none, offset=truth)
            numpyro.sample("observed", noise, obs=values)

    def _latent_sites(self, parameters, magnitude):
        """Sample sites of the true x1, c, m_b; returns them stacked, (N, 3)."""

        def latent(name, loc, scale):
            if self.latents in ("sampled", "centred"):
                return numpyro.sample(f"{name}_true", dist.Normal(loc, scale))
            standard = numpyro.sample(f"_{name}_standard", dist.Normal(0.0, 1.0))
            return numpyro.deterministic(f"{name}_true", loc + scale * standard)

        p = parameters
        x1 = latent("x1", p["x1_mean"], p["x1_std"])
        c = latent("c", p["c_mean"], p["c_std"])
        m_b = latent("m_b", magnitude + _tripp(p, x1, c), p["sigma_int"])
        return jnp.stack([x1, c, m_b], axis=-1)

    def _host_step(self, data, parameters):
        return parameters["delta_M"] * _is_massive(data) if self.mass_step else 0.0

    def standardise(self, data: Supernovae, parameters: Mapping[str, float]) -> Standardised:
        """Magnitude that each supernova would have with x1 = c = 0 and a host of low mass.

        Parameters
        ----------
        data : Supernovae
            The sample, N of them.
        parameters : mapping of str to float
            ``alpha, beta, sigma_int`` and, with a mass step, ``delta_M``; others are ignored.

        Returns
        -------
        Standardised
            ``m_b + alpha x1 - beta c - delta_M [massive host]``, (N,), whose mean in the model is M0 plus the distance
            modulus; and its variance: that of the light-curve fit with its correlations, lensing, peculiar velocity and
            the intrinsic scatter.

        Raises
        ------
        DataError
            If a host mass is needed and missing.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> parameters = {"alpha": 0.14, "beta": 3.1, "delta_M": -0.07, "sigma_int": 0.1}
        >>> Supernova().standardise(load_jla(), parameters).m_b.shape
        (740,)
        """
        m_b = data.m_b - _tripp(parameters, data.x1, data.c) - self._host_step(data, parameters)
        direction = np.array([parameters["alpha"], -parameters["beta"], 1.0])
        variance = np.einsum("i,nij,j->n", direction, _noise(data), direction) + parameters["sigma_int"] ** 2
        return Standardised(m_b, variance)

    def distmod(self, data: Supernovae, cosmology: Cosmology):
        """Distance modulus of every supernova [mag], (N,); a subclass may put its own rule here.

        NaN where there is no such universe: no big bang before the largest redshift. The density is zero there.
        """
        return RedshiftMatrix(data.z_cmb, data.z_hel, breaks=breaks_of(cosmology)).distmod(cosmology)

    def simulate(self, key, data: Supernovae, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample on the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : Supernovae
            Gives redshifts, errors, surveys and host masses.
        parameters : mapping of str to float, optional
            True values by name; those not named are drawn from their priors.

        Returns
        -------
        Supernovae, dict
            The sample with new observed values, and the true value of every parameter and latent.
        """
        observed, truth = simulated(dataclasses.replace(self, latents="noncentred"), key, data, parameters)
        x1, c, m_b = np.moveaxis(observed["observed"], -1, 0)
        return data.replace_observations(m_b=m_b, x1=x1, c=c), truth

    # What the inference and the surfaces ask of a program, beside calling it.

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site, beyond what the plates say."""
        return {"observed": ["supernova", "observable"]}

    def coords(self, data: Supernovae) -> dict[str, list]:
        """Labels of the dimensions."""
        return {"supernova": list(data.name), "observable": list(OBSERVABLES)}

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters; absent where dimensionless."""
        return UNITS

    @property
    def chooses_centering(self) -> bool:
        """Whether `hbm_jax.sample` is to choose the form of sampled latents."""
        return self.latents == "sampled"

    @property
    def description(self) -> str:
        """One line for reports."""
        return f"Type Ia supernovae, {background.expansion(self.cosmology).description}, {self.latents} latents"

    def to_config(self) -> dict:
        """Choices as plain values, priors as text; ``Supernova(**config)`` is the same model."""
        return configuration(self)


def _tripp(parameters, x1, c):
    """Magnitude that stretch and colour add [mag]."""
    return parameters["beta"] * c - parameters["alpha"] * x1


def _is_massive(data: Supernovae):
    """One where the host is above 1e10 solar masses."""
    mass = data.log10_mass
    if not isinstance(mass, jax.core.Tracer) and np.isnan(mass).any():
        raise DataError(
            f"Supernova(mass_step=True) needs the host mass of every supernova; found none for "
            f"{int(np.isnan(mass).sum())} of {len(data)}, the first being {data.name[int(np.isnan(mass).argmax())]}. "
            "Give them, or use mass_step=False."
        )
    return (mass > 10.0) * 1.0


def _observations(data: Supernovae):
    """Observed (x1, c, m_b), (N, 3)."""
    stack = jnp.stack if isinstance(data.m_b, jax.Array) else np.stack
    return stack([getattr(data, name) for name in OBSERVABLES], axis=-1)


def _noise(data: Supernovae):
    """Covariance of the observed (x1, c, m_b), (N, 3, 3): light-curve fit, lensing and peculiar velocity."""
    order = np.array([1, 2, 0])  # from the container's (m_b, x1, c)
    covariance = data.covariance[:, order[:, None], order]
    return covariance + (data.variance_lensing + data.variance_velocity)[:, None, None] * np.diag([0.0, 0.0, 1.0])


def _marginal(parameters, magnitude, noise) -> LinearGaussian:
    """Distribution of the observed (x1, c, m_b) with the true values integrated out."""
    p = parameters
    mean_m_b = magnitude + _tripp(p, p["x1_mean"], p["c_mean"])
    x1_mean, c_mean, mean_m_b = jnp.broadcast_arrays(p["x1_mean"], p["c_mean"], mean_m_b)
    loc = jnp.stack([x1_mean, c_mean, mean_m_b], axis=-1)
    x1_std, c_std, zero = p["x1_std"], p["c_std"], 0.0
    scale_tril = jnp.array(
        [[x1_std, zero, zero], [zero, c_std, zero], [-p["alpha"] * x1_std, p["beta"] * c_std, p["sigma_int"]]]
    )
    return LinearGaussian(loc, scale_tril, noise)
