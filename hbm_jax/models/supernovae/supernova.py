"""Type Ia supernova cosmology from SALT parameters: the Tripp relation with populations of stretch and colour.

The true stretch, colour and magnitude of each supernova are

    x1 ~ N(x1_mean, x1_std^2),   c ~ N(c_mean, c_std^2),
    m_b = M0 + mu(z; cosmology) - alpha x1 + beta c + delta_M [host mass > 1e10 Msun] + N(0, sigma_int^2),

and they are observed with the 3x3 covariance of the light-curve fit, plus the variances of lensing and peculiar
velocity in m_b (Tripp 1998, A&A 331, 815; March et al. 2011, MNRAS 418, 2308; Rubin et al. 2015, ApJ 813, 137). Options
generalise each part of the model; the latents that they add are integrated out too, see
`hbm_jax.models.supernovae.population`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology, RedshiftMatrix, breaks_of
from hbm_jax.data import DataError, Supernovae, lensing_variance, velocity_variance
from hbm_jax.distributions import LinearGaussian
from hbm_jax.distributions.observed_mixture import MAX_TRIES
from hbm_jax.models import expansion
from hbm_jax.models.base import configuration, simulated
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy
from hbm_jax.models.supernovae.host import massive_hosts
from hbm_jax.models.supernovae.parameters import (
    COLOUR,
    DEFAULT_PRIORS,
    DRIFT,
    HOST_BETA,
    SELECTION,
    STRETCH,
    UNITS,
    outlier_priors,
)
from hbm_jax.models.supernovae.population import (
    OBSERVABLES,
    host_relation,
    marginal,
    populations,
    selection_of,
    tripp,
)
from hbm_jax.models.supernovae.redshift import PRIORS as REDSHIFT_PRIORS
from hbm_jax.models.supernovae.redshift import redshift_nodes
from hbm_jax.models.supernovae.standardised import Standardised, standardised
from hbm_jax.names import choose

LATENTS = ("marginal", "sampled", "noncentred", "centred")
VELOCITIES = ("distance", "redshift")
SELECTIONS = ("none", "common", "survey")
_ORDER = np.array([1, 2, 0])  # from the container's (m_b, x1, c)


@dataclass(frozen=True, kw_only=True)
class Supernova:
    """Hierarchical model of type Ia supernovae; a call with data is a NumPyro program.

    Parameters
    ----------
    cosmology : str or Expansion
        ``"lcdm"`` (flat), ``"olcdm"`` (with curvature), ``"wcdm"`` (flat), ``"owcdm"``, ``"w0wacdm"`` (flat),
        ``"binned(0.3, 0.7)"`` (flat, w constant in bins of redshift), or a user-defined `hbm_jax.models.Expansion`.
    latents : str
        Treatment of the true x1, c and m_b of each supernova. ``"marginal"`` integrates them out exactly, so that only
        the population parameters are sampled. ``"sampled"`` samples all three per supernova with a partial
        non-centring chosen by a pilot run; ``"noncentred"`` and ``"centred"`` use those parametrisations. All have the
        same posterior.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name; a number fixes the parameter. `Supernova.all_priors` has the defaults. H0 is fixed
        at 70 km/s/Mpc unless it has a prior: without an anchor it is degenerate with M0.
    mass_step : bool
        Whether the magnitudes of supernovae in hosts above ``step_mass`` are offset by delta_M. JLA's placeholder for
        hosts without a measured mass counts as low mass, as in Betoule et al. 2014.
    mass_error : bool
        Whether to marginalise over the side of the mass step of each host, with the probability from its mass and
        error (`massive_hosts`). A host without a mass, or with a placeholder as in JLA, has a probability of 0.5.
    step_mass, step_width : float
        Mass at the step [log10 solar masses] and width of the step [dex]: the offset, or with ``mass_error`` the
        probability, follows a normal distribution function. A width of 0 is a sharp step.
    host_beta : bool
        Whether massive hosts have a different slope of colour (with ``colour="dust"``, of dust), by delta_beta.
    stretch : str
        Population of x1: ``"normal"``; ``"skewed"``, skew normal with shape x1_skew; or ``"two"``, two normal
        populations, of which a fraction x1_fraction_low has a mean lower by x1_shift and standard deviation x1_std_low.
    colour : str
        Population of c: ``"normal"``; ``"skewed"``, skew normal with shape c_skew; ``"dust"``, normal intrinsic
        colours with slope beta plus exponential reddening with mean c_dust and slope beta_dust; or ``"broken"``,
        normal with slope beta for a true c below 0 and beta_red above. All are integrated exactly. With
        ``stretch="skewed"`` the colours must be normal.
    drift : bool
        Whether the means of x1 and c change with redshift: x1_mean + x1_drift z, c_mean + c_drift z.
    survey_scatter : bool
        Whether each survey has its own sigma_int.
    lensing : float, optional
        Lensing scatter of the magnitude [mag per unit redshift], in place of the data's ``variance_lensing``.
    sigma_v : float, optional
        Dispersion of peculiar velocities [km/s], in place of the data's ``variance_velocity``.
    velocity : str
        Whether ``sigma_v`` is a scatter of the magnitude, ``"distance"``, or an error of the redshift from which the
        distance is computed, ``"redshift"``. The latter is integrated numerically and also holds where velocities are
        not small compared with the recession velocity.
    redshift_prior : str
        Distribution of true redshifts where they have errors (``velocity="redshift"``, or ``sigma_z`` of the data):
        ``"flat"``, or ``"volume"`` for a constant rate per comoving volume.
    outliers : bool
        Whether a fraction outlier_fraction of supernovae has an additional scatter outlier_scatter. `hbm_jax.latents`
        then returns the ``outlier_probability`` of each supernova.
    selection : str
        Whether supernovae are in the sample with probability Phi((m_lim + m_lim_colour c - m_b) / m_lim_width) of
        their observed values: ``"none"``; ``"common"``; or ``"survey"``, with m_lim and m_lim_width for each survey.
        m_lim_colour is 0 unless it has a prior.

    Raises
    ------
    ValueError
        For an unknown cosmology, option or prior name (the message suggests the nearest), and for incompatible options.

    Notes
    -----
    The coherent scatter that a published error of m_b may include (`Supernovae.variance_coherent`) is not added,
    because sigma_int replaces it. The variances of lensing and peculiar velocity are kept.

    Calibration offsets of the data (`Supernovae.sensitivity`) are parameters ``calibration``, N(0, 1) each.

    An error of the redshift changes only the distance, not the result of the light-curve fit.

    Examples
    --------
    >>> Supernova(cosmology="wcdm", priors={"Om0": "Normal(0.3, 0.05)"}).all_priors["Om0"].loc
    0.3
    """

    cosmology: str | expansion.Expansion = field(default="lcdm", metadata={"help": expansion.HELP})
    latents: str = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)
    mass_step: bool = field(default=True, metadata={"help": "whether massive hosts have a magnitude offset"})
    mass_error: bool = field(default=False, metadata={"help": "whether to use errors of host masses"})
    step_mass: float = field(default=10.0, metadata={"help": "log10 of the host mass at the step"})
    step_width: float = field(default=0.0, metadata={"help": "width of the mass step in dex"})
    host_beta: bool = field(default=False, metadata={"help": "whether massive hosts have a different beta"})
    stretch: str = field(default="normal", metadata={"help": f"population of x1: {', '.join(STRETCH)}"})
    colour: str = field(default="normal", metadata={"help": f"population of c: {', '.join(COLOUR)}"})
    drift: bool = field(default=False, metadata={"help": "whether the populations change with redshift"})
    survey_scatter: bool = field(default=False, metadata={"help": "whether each survey has its own sigma_int"})
    lensing: float | None = field(default=None, metadata={"help": "lensing scatter in mag per redshift"})
    sigma_v: float | None = field(default=None, metadata={"help": "peculiar velocities in km/s"})
    velocity: str = field(default="distance", metadata={"help": f"effect of sigma_v: {', '.join(VELOCITIES)}"})
    redshift_prior: str = field(default="flat", metadata={"help": f"prior of redshifts: {', '.join(REDSHIFT_PRIORS)}"})
    outliers: bool = field(default=False, metadata={"help": "whether some supernovae scatter more"})
    selection: str = field(default="none", metadata={"help": f"detection limit: {', '.join(SELECTIONS)}"})

    def __post_init__(self):
        expansion.named(self.cosmology)  # raises for unknown names
        choose("treatment of latents", self.latents, LATENTS)
        choose("population of stretch", self.stretch, tuple(STRETCH))
        choose("population of colour", self.colour, tuple(COLOUR))
        choose("effect of velocities", self.velocity, VELOCITIES)
        choose("prior of redshifts", self.redshift_prior, REDSHIFT_PRIORS)
        choose("selection", self.selection, SELECTIONS)
        object.__setattr__(self, "priors", dict(self.priors))
        self._check_options()
        self.all_priors  # noqa: B018 - raises for unknown names

    def _check_options(self):
        """Raise an error for option values out of range and for incompatible options."""
        for name in ("step_width", "lensing", "sigma_v"):
            value = getattr(self, name)
            if value is not None and not value >= 0.0:
                raise ValueError(f"Supernova: {name}: expected 0 or more; found {value!r}.")
        host = {"mass_error": self.mass_error, "host_beta": self.host_beta, "step_width": self.step_width > 0.0}
        if not self.mass_step and any(host.values()):
            option = next(name for name, on in host.items() if on)
            raise ValueError(f"Supernova: {option} expects mass_step=True (a prior may fix delta_M at 0); found False.")
        if self.velocity == "redshift" and self.sigma_v is None:
            raise ValueError("Supernova: velocity='redshift' expects sigma_v [km/s], such as 250; found none.")
        if self.stretch == "skewed" and self.colour != "normal":
            raise ValueError(
                f"Supernova: stretch='skewed' expects colour='normal'; found {self.colour!r}. stretch='two' is skewed "
                "too and allows every colour."
            )
        if self.latents != "marginal" and self._mixture_options:
            raise ValueError(
                f"Supernova: latents={self.latents!r} expects normal populations that are all observed; found "
                f"{', '.join(self._mixture_options)}, which need latents='marginal'."
            )

    @property
    def _mixture_options(self) -> list[str]:
        """Options in use that need the mixture of `populations`."""
        choices = {name: getattr(self, name) for name in ("stretch", "colour", "velocity", "selection")}
        normal = {"stretch": "normal", "colour": "normal", "velocity": "distance", "selection": "none"}
        flags = [f"{name}=True" for name in ("mass_error", "outliers") if getattr(self, name)]
        return flags + [f"{name}={value!r}" for name, value in choices.items() if value != normal[name]]

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number fixes a parameter."""
        return complete_priors(
            expansion.default_priors(self.cosmology) | self._relation_priors,
            self.priors,
            f"Supernova(cosmology={self.cosmology!r})",
        )

    @property
    def _relation_priors(self) -> dict[str, Prior]:
        """Default priors of the parameters other than those of the cosmology."""
        defaults = {name: prior for name, prior in DEFAULT_PRIORS.items() if self.mass_step or name != "delta_M"}
        defaults |= STRETCH[self.stretch] | COLOUR[self.colour]
        optional = (
            (self.host_beta, HOST_BETA),
            (self.drift, DRIFT),
            (self.outliers, outlier_priors() if self.outliers else {}),
            (self.selection != "none", SELECTION),
        )
        return defaults | {name: prior for on, group in optional if on for name, prior in group.items()}

    @property
    def relation_parameters(self) -> tuple[str, ...]:
        """Names of the parameters other than those of the cosmology."""
        return tuple(self._relation_priors)

    @property
    def _by_survey(self) -> tuple[str, ...]:
        """Parameters that differ between surveys."""
        scatter = ("sigma_int",) if self.survey_scatter else ()
        return scatter + (("m_lim", "m_lim_width") if self.selection == "survey" else ())

    def __call__(self, data: Supernovae, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : Supernovae
            The sample. With ``observed=False`` its redshifts, errors and host masses are the design, and (x1, c, m_b)
            are drawn.
        observed : bool
            Whether to condition on the observed values.
        recover : bool
            With marginal latents, also draw x1_true, c_true, m_b_true of each supernova from their exact conditional
            posterior.
        """
        priors = self.all_priors
        cosmology = expansion.sample_cosmology(self.cosmology, priors, supernova_degeneracy)
        parameters = self._sample_parameters(data, priors)
        offset = self._sample_calibration(data)
        nodes = self._redshift_nodes(data, cosmology)
        # A subclass's distmod may use other columns, so redshifts are replaced by nodes only where they have errors.
        modulus = self.distmod(data, cosmology) if nodes is None else self._distmod_at(data, nodes, cosmology)
        if observed:
            # A cosmology without a big bang has zero density. A NaN in the moduli would also make gradients NaN.
            finite = jnp.all(jnp.isfinite(modulus))
            numpyro.factor("_big_bang", jnp.where(finite, 0.0, -jnp.inf))
            modulus = jnp.where(finite, modulus, 0.0)
        parameters |= self._drifted(data, parameters)
        values = _observations(data) if observed else None
        if nodes is not None or self._mixture_options:
            self._mixture(data, parameters, modulus, nodes, offset, values, recover)
            return
        massive = self.massive(data) if self.mass_step else 0.0
        host = host_relation(self, parameters, massive)
        magnitude = modulus + parameters["M0"] + host.pop("host_magnitude")
        parameters |= host
        with numpyro.plate("supernova", len(data)):
            if self.latents == "marginal":
                distribution = marginal(parameters, magnitude, self.noise(data), offset)
                values = numpyro.sample("observed", distribution, obs=values)
                if recover:
                    _record(numpyro.sample("_latent", distribution.conditional(values)))
                return
            truth = self._latent_sites(parameters, magnitude)
            loading = jnp.zeros((3, 0))
            shifted = truth if offset is None else truth + offset
            noise = LinearGaussian(jnp.zeros(0), jnp.zeros((0, 0)), self.noise(data), loading=loading, offset=shifted)
            numpyro.sample("observed", noise, obs=values)

    def _mixture(self, data, parameters, modulus, nodes, offset, values, recover):
        """Sample the observed values from the mixture of `populations`."""
        log_nodes = jnp.zeros((len(data), 1)) if nodes is None else nodes.log_weights
        magnitude = parameters["M0"] + (modulus[:, None] if nodes is None else modulus)
        massive = self.massive(data) if self.mass_step else None
        selection = selection_of(parameters) if self.selection != "none" else None
        mixture = populations(self, parameters, magnitude, log_nodes, massive, self.noise(data), offset, selection)
        with numpyro.plate("supernova", len(data)):
            values = numpyro.sample("observed", mixture.observed, obs=values)
            if recover:
                _record(mixture.observed.conditional_sample(numpyro.prng_key(), values)[1])
                probabilities = mixture.observed.probabilities(values)
                if self.outliers:
                    numpyro.deterministic("outlier_probability", probabilities @ mixture.outlier)
                if self.mass_error:
                    numpyro.deterministic("massive_probability", probabilities @ mixture.massive)

    def _sample_parameters(self, data, priors) -> dict[str, Any]:
        """Sample the parameters of the relation; return numbers, or (N,) where they differ between surveys."""
        values: dict[str, Any] = {}
        for name in self.relation_parameters:
            if name in self._by_survey and isinstance(priors[name], dist.Distribution):
                surveys = list(data.survey_counts)
                with numpyro.plate("survey", len(surveys)):
                    per_survey = jnp.asarray(numpyro.sample(name, priors[name]))
                values[name] = per_survey[np.array([surveys.index(survey) for survey in data.survey])]
            else:
                values[name] = sample_prior(name, priors[name])
        return values

    def _sample_calibration(self, data: Supernovae):
        """Sample calibration offsets; return the shift of the observed (x1, c, m_b), (N, 3), or None."""
        if not data.offset_name:
            return None
        with numpyro.plate("offset", len(data.offset_name)):
            calibration = jnp.asarray(numpyro.sample("calibration", dist.Normal(0.0, 1.0)))
        return jnp.einsum("njk,j->nk", data.sensitivity[..., _ORDER], calibration)

    def _redshift_nodes(self, data: Supernovae, cosmology):
        """Return quadrature nodes in redshift, or None where redshifts have no errors."""
        exact = not isinstance(data.sigma_z, jax.core.Tracer) and not np.any(data.sigma_z)
        if exact and self.velocity != "redshift":
            return None
        if self.latents != "marginal":
            raise DataError(
                f"Supernova: latents={self.latents!r} expects redshifts without an error; found sigma_z above 0. Use "
                "latents='marginal'."
            )
        sigma_v = float(self.sigma_v or 0.0) if self.velocity == "redshift" else 0.0
        return redshift_nodes(data, sigma_v, self.redshift_prior, cosmology)

    def _distmod_at(self, data, nodes, cosmology):
        """Return the distance modulus at the redshift nodes of each supernova, (N, Z)."""
        shape = nodes.z_cmb.shape
        at_nodes = dataclasses.replace(data, z_cmb=nodes.z_cmb.reshape(-1), z_hel=nodes.z_hel.reshape(-1))
        return self.distmod(at_nodes, cosmology).reshape(shape)

    def _drifted(self, data, parameters):
        """Return the means of stretch and colour at each redshift, where they drift."""
        if not self.drift:
            return {}
        return {
            f"{name}_mean": parameters[f"{name}_mean"] + parameters[f"{name}_drift"] * data.z_cmb
            for name in ("x1", "c")
        }

    def massive(self, data: Supernovae):
        """Return the weight of the high-mass side of the step for each host, (N,); see `massive_hosts`."""
        return massive_hosts(data, self.step_mass, self.step_width, self.mass_error)

    def noise(self, data: Supernovae):
        """Return the covariance of the observed (x1, c, m_b), (N, 3, 3): light-curve fit, lensing and velocity."""
        covariance = data.covariance[:, _ORDER[:, None], _ORDER]
        lensing = data.variance_lensing if self.lensing is None else lensing_variance(data.z_cmb, self.lensing)
        velocity: Any = data.variance_velocity
        if self.velocity == "redshift":
            velocity = 0.0
        elif self.sigma_v is not None:
            velocity = velocity_variance(data.z_cmb, self.sigma_v)
        return covariance + (lensing + velocity)[:, None, None] * np.diag([0.0, 0.0, 1.0])

    def _latent_sites(self, parameters, magnitude):
        """Sample the true x1, c, m_b; return them stacked, (N, 3)."""

        def latent(name, loc, scale):
            if self.latents in ("sampled", "centred"):
                return numpyro.sample(f"{name}_true", dist.Normal(loc, scale))
            standard = numpyro.sample(f"_{name}_standard", dist.Normal(0.0, 1.0))
            return numpyro.deterministic(f"{name}_true", loc + scale * standard)

        p = parameters
        x1 = latent("x1", p["x1_mean"], p["x1_std"])
        c = latent("c", p["c_mean"], p["c_std"])
        m_b = latent("m_b", magnitude + tripp(p, x1, c), p["sigma_int"])
        return jnp.stack([x1, c, m_b], axis=-1)

    def standardise(self, data: Supernovae, parameters: Mapping[str, float]) -> Standardised:
        """Return the magnitude of each supernova corrected to x1 = c = 0 and a low-mass host.

        Parameters
        ----------
        data : Supernovae
            The sample of N supernovae.
        parameters : mapping of str to float
            ``alpha``, ``beta``, ``sigma_int``, ``delta_M`` with a mass step, and the parameters of other options used;
            others are ignored. sigma_int may be an array with one value for each survey of ``data.survey_counts``.

        Returns
        -------
        Standardised
            ``m_b + alpha x1 - beta c - delta_M [massive host]``, (N,), whose mean in the model is M0 plus the distance
            modulus; and its variance, from the covariance of the light-curve fit, lensing, peculiar velocity and
            intrinsic scatter. With ``mass_error`` the step is weighted by the probability of a massive host. With dust
            the slope is that of the regression of magnitude on true colour. Redshift errors are propagated to first
            order. Selection and outliers are ignored.

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
        return standardised(self, data, parameters)

    def distmod(self, data: Supernovae, cosmology: Cosmology):
        """Return the distance modulus of every supernova [mag], (N,); subclasses may override it.

        NaN for a cosmology without a big bang before the largest redshift, where the density is zero.
        """
        return RedshiftMatrix(data.z_cmb, data.z_hel, breaks=breaks_of(cosmology)).distmod(cosmology)

    def simulate(self, key, data: Supernovae, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : Supernovae
            Redshifts, errors, surveys and host masses.
        parameters : mapping of str to float, optional
            True values by name; parameters not named are drawn from their priors.

        Returns
        -------
        Supernovae, dict
            The sample with new observed values, and the true value of every parameter and latent.
        """
        mixture = bool(self._mixture_options) or np.any(data.sigma_z)
        model = self if mixture else dataclasses.replace(self, latents="noncentred")
        observed, truth = simulated(model, key, data, parameters, recover=bool(mixture))
        drawn = observed["observed"]
        if np.isnan(drawn).any():
            row = int(np.isnan(drawn).any(axis=-1).argmax())
            raise ValueError(
                f"simulate: expected every supernova to be detectable; found none of {MAX_TRIES} draws detected for "
                f"{data.name[row]} at z = {data.z_cmb[row]:.4g}. Give m_lim and the other parameters, or remove this "
                "supernova from the design."
            )
        x1, c, m_b = np.moveaxis(drawn, -1, 0)
        return data.replace_observations(m_b=m_b, x1=x1, c=c), truth

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site that its plate does not name."""
        return {"observed": ["supernova", "observable"]}

    def coords(self, data: Supernovae) -> dict[str, list]:
        """Return the labels of the dimensions."""
        labels = {"supernova": list(data.name), "observable": list(OBSERVABLES)}
        labels |= {"survey": list(data.survey_counts)} if self._by_survey else {}
        return labels | ({"offset": list(data.offset_name)} if data.offset_name else {})

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters, without the dimensionless ones."""
        return UNITS

    @property
    def chooses_centering(self) -> bool:
        """Whether `hbm_jax.sample` chooses the partial non-centring of the sampled latents."""
        return self.latents == "sampled"

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return f"Type Ia supernovae, {expansion.named(self.cosmology).description}, {self.latents} latents"

    def to_config(self) -> dict:
        """Return options as plain values and priors as text; ``Supernova(**config)`` is the same model."""
        return configuration(self)


def _observations(data: Supernovae):
    """Return the observed (x1, c, m_b), (N, 3)."""
    stack = jnp.stack if isinstance(data.m_b, jax.Array) else np.stack
    return stack([getattr(data, name) for name in OBSERVABLES], axis=-1)


def _record(latent):
    """Record the true x1, c, m_b as deterministic sites."""
    for index, name in enumerate(OBSERVABLES):
        numpyro.deterministic(f"{name}_true", latent[..., index])
