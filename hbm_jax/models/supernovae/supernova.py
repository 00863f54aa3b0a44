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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology
from hbm_jax.data import Supernovae
from hbm_jax.models import expansion
from hbm_jax.models.base import PopulationModel, simulated
from hbm_jax.models.efficiency import DetectionFunction, Efficiency, Injections, effective_injections
from hbm_jax.models.priors import Prior
from hbm_jax.models.selection import Selection
from hbm_jax.models.supernovae import options, program
from hbm_jax.models.supernovae.bound import (
    BoundSupernovae,
    bind,
    noise_covariance,
    objects_of,
    padded,
    redshift_variance,
)
from hbm_jax.models.supernovae.cosmology_constraints import FREE_H0
from hbm_jax.models.supernovae.laws import (
    ColourLaw,
    Drift,
    MassStep,
    Outliers,
    RedshiftLaw,
    ScatterLaw,
    SelectionLaw,
    Shapes,
    StretchLaw,
)
from hbm_jax.models.supernovae.population import OBSERVABLES, Laws
from hbm_jax.models.supernovae.standardised import Standardised, standardised
from hbm_jax.precomputation import padded_size

Latents = Literal["marginal", "sampled", "noncentred", "centred"]
LATENTS = get_args(Latents)
# Weakly informative: some ten times wider than the constraints of modern samples, except where a scale is known.
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
UNITS = {"H0": "km/s/Mpc"} | dict.fromkeys(
    ("M0", "alpha", "delta_M", "sigma_int", "c_mean", "c_std", "c_true", "m_b_true"), "mag"
)


@dataclass(frozen=True, kw_only=True)
class Supernova(PopulationModel):
    """Hierarchical model of type Ia supernovae; a call with data is a NumPyro program.

    Parameters
    ----------
    cosmology : str or Expansion
        ``"lcdm"`` (flat), ``"olcdm"`` (with curvature), ``"wcdm"`` (flat), ``"owcdm"``, ``"w0wacdm"`` (flat),
        ``"binned(0.3, 0.7)"`` (flat, w constant in bins of redshift), ``"nodes"`` (free distances at the redshifts of
        Union3, with M0 fixed; `hbm_jax.models.expansion.distance_nodes` returns the distance-level sample of a
        posterior) or ``"nodes(0.1, 0.5, 1)"``, or a user-defined `hbm_jax.models.Expansion`.
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
        error (`hbm_jax.models.supernovae.laws.MassStep`). A host without a mass, or with a placeholder as in JLA, has a
        probability of 0.5.
    step_mass, step_width : float
        Mass at the step [log10 solar masses] and width of the step [dex]: the offset, or with ``mass_error`` the
        probability, follows a normal distribution function. A width of 0 is a sharp step.
    host_beta : bool
        Whether massive hosts have a different slope of colour (with ``colour="dust"``, of dust), by delta_beta.
    host_populations : bool
        Whether the means of x1 and c differ in massive hosts, by x1_host and c_host.
    population_shapes : bool
        Whether widths and tails, or the fraction of ``stretch="two"``, change too where means do (``drift``,
        ``host_populations``): by the ratios x1_std_drift per unit redshift, x1_std_host in massive hosts, and so on
        (`hbm_jax.models.supernovae.laws.Shapes`).
    step_evolution : bool
        Whether the mass step changes with redshift, from delta_M at z = 0 to delta_M_ratio times that at high redshift
        (`hbm_jax.models.supernovae.laws.MassStep`).
    stretch : str or StretchLaw
        Population of x1: ``"normal"``; ``"skewed"``, skew normal; ``"tail"``, normal plus an exponential tail to low
        stretch; or ``"two"``, two normal populations. See
        `hbm_jax.models.supernovae.laws`, where other packages can add laws of stretch, colour and selection.
    colour : str or ColourLaw
        Population of c: ``"normal"``; ``"skewed"``; ``"tail"``, normal plus an exponential tail to red colours;
        ``"dust"``, likewise with a slope of its own for the tail, the reddening; or ``"broken"``, with a slope beta
        for a true c below 0 and beta_red above. All combinations are integrated out. With ``selection``, half normal
        latents of ``"skewed"`` and ``"broken"`` take a quadrature of 32 nodes each; tails are closed forms.
    drift : bool
        Whether the means of x1 and c change with redshift: x1_mean + x1_drift z, c_mean + c_drift z.
    scatter : str or ScatterLaw
        Intrinsic scatter: ``"magnitude"``, of m_b alone; ``"shared"``, of m_b, x1 and c with inferred fractions, as in
        UNITY; or ``"correlated"``, with a full covariance (`hbm_jax.models.supernovae.laws.ScatterLaw`). It is part of
        the true values, and enters the magnitude beside the relation.
    survey_scatter : bool
        Whether each survey has its own sigma_int.
    lensing : float, optional
        Lensing scatter of the magnitude [mag per unit redshift], in place of the data's ``variance_lensing``.
    sigma_v : float, optional
        Dispersion of peculiar velocities [km/s], in place of the data's ``variance_velocity``.
    velocity : str
        Effect of ``sigma_v``: ``"distance"``, a scatter of the magnitude; or ``"redshift"``, an error of the redshift
        from which the distance is computed. The latter is integrated numerically and also holds where velocities are
        not small compared with the recession velocity.
    redshift_prior : str or RedshiftLaw
        Distribution of true redshifts where they have errors (``velocity="redshift"``, or ``sigma_z`` of the data):
        ``"flat"``; ``"volume"`` for a constant rate per comoving volume; or ``"gamma"``, a gamma distribution with
        mean z_mean and shape z_shape of the photometric redshifts (``sigma_z`` above 0), which are then data too
        (`hbm_jax.models.supernovae.laws.GammaRedshifts`). The last expects ``selection="none"``.
    outliers : bool
        Whether a fraction outlier_fraction of supernovae has an additional scatter outlier_scatter. `hbm_jax.latents`
        then returns the ``outlier_probability`` of each supernova.
    selection : str, SelectionLaw, Selection, Efficiency, DetectionFunction or Injections
        ``"none"``: all supernovae are detected. ``"common"``: they are detected with probability
        Phi((m_lim + m_lim_colour c - m_b) / m_lim_width), for observed c and m_b. ``"survey"``: likewise, with m_lim
        and m_lim_width for each survey. m_lim_colour is 0 unless it has a prior. ``"band"``: the limits of the
        surveys in observed bands, from the data, with a shift and a factor of the width for each
        (`hbm_jax.models.supernovae.laws.BandLimits`). ``"colour"``: supernovae redder than c_lim, 0.3 unless it has
        another value, are left out of the sample (`hbm_jax.models.supernovae.laws.ColourCut`). ``"band and colour"``,
        and likewise the other limits: both.
        A limit of the observed m_b, c or x1: ``"m_b < 24 +- 0.2"``, ``"m_b < Normal(24, 1) +- 0.2 by group"`` for one
        of every survey, or ``"c < 0.3"``, see `hbm_jax.models.selection`.
        ``"m_b from efficiency.csv"`` or ``"m_b efficiency 22:1 24:0"``: a tabulated efficiency in the observed m_b, c
        or x1. A `hbm_jax.models.DetectionFunction`: any smooth function of observed c and m_b, integrated by a fixed
        quadrature. ``"injections from injections.csv"``: the detected fraction is that of simulated supernovae, see
        `hbm_jax.models.Injections`. The last three, and a cut beside limits, expect normal populations of x1 and c.
    calibrated : bool
        Whether calibrators determine H0: supernovae whose hosts have distance moduli of their own (``mu_calibrator``),
        from Cepheids for example, with independent errors. An error that they have in common, such as that of the
        anchors, is a calibration offset (``d_m_b_anchor``).
    observations : str
        Meaning of rows of the same name: ``"separate"``, each is another supernova; or ``"joint"``, they are
        observations of one supernova by several surveys, with one true stretch, colour and magnitude, errors,
        calibration and detection of each survey, and the host mass with the smallest error. Expects
        ``latents="marginal"`` and no intrinsic scatter by survey.
    offsets : str
        Treatment of the calibration offsets of the data (`Supernovae.sensitivity`), N(0, 1) each, and of other linear
        nuisances given in the same way, such as modes of bulk flows: ``"sampled"`` as parameters ``calibration``; or
        ``"marginal"``, integrated out exactly and drawn by `hbm_jax.latents`. The latter needs ``latents="marginal"``,
        normal populations, no selection, no outliers, and redshifts without errors.

    Raises
    ------
    ValueError
        For an unknown cosmology, option or prior name (the message suggests the nearest), and for incompatible options.

    Notes
    -----
    The coherent scatter that a published error of m_b may include (`Supernovae.variance_coherent`) is not added,
    because sigma_int replaces it. The variances of lensing and peculiar velocity are kept.

    An error of the redshift changes only the distance, not the result of the light-curve fit.

    Examples
    --------
    >>> Supernova(cosmology="wcdm", priors={"Om0": "Normal(0.3, 0.05)"}).all_priors["Om0"].loc
    0.3
    """

    Bound: ClassVar[type] = BoundSupernovae

    # Traced, the 43 numbers of JLA's priors make a gradient take 1.6 times the time on two cores, 1.0 on one: XLA then
    # hands more operations to other threads.
    traces_priors: ClassVar[bool] = False

    cosmology: str | expansion.Expansion = field(default="lcdm", metadata={"help": expansion.HELP})
    latents: Latents = field(default="marginal", metadata={"help": ", ".join(LATENTS)})
    mass_step: bool = field(default=True, metadata={"help": "whether massive hosts have a magnitude offset"})
    mass_error: bool = field(default=False, metadata={"help": "whether to use errors of host masses"})
    step_mass: float = field(default=10.0, metadata={"help": "log10 of the host mass at the step"})
    step_width: float = field(default=0.0, metadata={"help": "width of the mass step in dex"})
    host_beta: bool = field(default=False, metadata={"help": "whether massive hosts have a different beta"})
    host_populations: bool = field(
        default=False, metadata={"help": "whether massive hosts have other populations of x1 and c"}
    )
    population_shapes: bool = field(
        default=False, metadata={"help": "whether widths and tails change with redshift and host, where means do"}
    )
    step_evolution: bool = field(default=False, metadata={"help": "whether the mass step changes with redshift"})
    stretch: str | StretchLaw = field(
        default="normal", metadata={"help": f"population of x1: {', '.join(StretchLaw.registry)}"}
    )
    colour: str | ColourLaw = field(
        default="normal", metadata={"help": f"population of c: {', '.join(ColourLaw.registry)}"}
    )
    drift: bool = field(default=False, metadata={"help": "whether the populations change with redshift"})
    scatter: str | ScatterLaw = field(
        default="magnitude", metadata={"help": f"intrinsic scatter: {', '.join(ScatterLaw.registry)}"}
    )
    survey_scatter: bool = field(default=False, metadata={"help": "whether each survey has its own sigma_int"})
    lensing: float | None = field(default=None, metadata={"help": "lensing scatter in mag per redshift"})
    sigma_v: float | None = field(default=None, metadata={"help": "peculiar velocities in km/s"})
    velocity: Literal["distance", "redshift"] = field(
        default="distance", metadata={"help": "effect of sigma_v: distance, redshift"}
    )
    redshift_prior: str | RedshiftLaw = field(
        default="flat", metadata={"help": f"distribution of redshifts: {', '.join(RedshiftLaw.registry)}"}
    )
    outliers: bool = field(default=False, metadata={"help": "whether some supernovae scatter more"})
    selection: str | SelectionLaw | Selection | Efficiency | DetectionFunction | Injections = field(
        default="none", metadata={"help": f"detection limit: {', '.join(SelectionLaw.registry)}"}
    )
    observations: Literal["separate", "joint"] = field(
        default="separate", metadata={"help": "rows of the same name: separate, joint (of one supernova)"}
    )
    calibrated: bool = field(default=False, metadata={"help": "whether calibrators determine H0"})
    offsets: Literal["sampled", "marginal"] = field(
        default="sampled", metadata={"help": "calibration offsets: sampled, marginal (integrated out)"}
    )
    remedies: ClassVar[dict[str, str]] = {
        "distribution": "outliers=True, or another law of stretch= or colour=",
        "trend": 'drift=True, selection="survey", or another dependence on the host',
        "groups": 'survey_scatter=True or selection="survey"',
    }
    dims: ClassVar[dict[str, list[str]]] = {"observed": ["supernova", "observable"]}

    def check_options(self) -> None:
        """Raise an error for option values out of range and for incompatible options."""
        expansion.named(self.cosmology)  # raises for unknown names
        for name in ("stretch", "colour", "scatter", "selection", "redshift_prior"):
            law = getattr(self.laws, name.replace("redshift_prior", "redshifts"))  # raises for unknown names
            object.__setattr__(self, name, law.to_config() if law.is_registered else law)
        options.check(self)

    @cached_property
    def laws(self) -> Laws:
        """Laws of the model; None where an option is off."""
        return Laws(
            stretch=StretchLaw.named(self.stretch),
            colour=ColourLaw.named(self.colour),
            host=self._mass_step_law if self.mass_step else None,
            drift=Drift(self._shapes) if self.drift else None,
            outliers=Outliers() if self.outliers else None,
            scatter=ScatterLaw.named(self.scatter),
            selection=SelectionLaw.named(self.selection),
            redshifts=RedshiftLaw.named(self.redshift_prior),
        )

    @property
    def _mass_step_law(self) -> MassStep:
        """Mass step with the options of the model, also if ``mass_step`` is False."""
        return MassStep(
            self.step_mass,
            self.step_width,
            self.mass_error,
            self.host_beta,
            self.host_populations,
            self.step_evolution,
            self._shapes if self.host_populations else Shapes(),
        )

    @property
    def _shapes(self) -> Shapes:
        """Widths and fractions of the populations that change with redshift and host."""
        laws = [StretchLaw.named(self.stretch), ColourLaw.named(self.colour)] if self.population_shapes else []
        return Shapes.of(laws)

    @property
    def label(self) -> str:
        """Name of the model in error messages about priors."""
        return f"Supernova(cosmology={self.cosmology!r})"

    @property
    def blinded(self) -> tuple[str, ...]:
        """Parameters that ``blind=True`` of `hbm_jax.sample` hides: those of the cosmology."""
        return expansion.result_parameters(self.cosmology, self.all_priors)

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter, in the order of summary tables; a number fixes a parameter."""
        relation, fixed = self._relation_priors, expansion.named(self.cosmology).fixed
        relation |= {name: value for name, value in fixed.items() if name in relation}
        free = {"H0": FREE_H0} if self.calibrated else {}
        return expansion.default_priors(self.cosmology) | free | relation

    @property
    def _relation_priors(self) -> dict[str, Prior]:
        """Default priors of the parameters other than those of the cosmology."""
        priors = dict(DEFAULT_PRIORS)
        for law in self.laws.used:
            priors |= law.priors
        if self.laws.host is None:
            del priors["delta_M"]
        return priors

    @property
    def relation_parameters(self) -> tuple[str, ...]:
        """Names of the parameters other than those of the cosmology."""
        return tuple(self._relation_priors)

    @property
    def by_survey(self) -> tuple[str, ...]:
        """Parameters that differ between surveys."""
        law_parameters = tuple(name for law in self.laws.used for name in law.by_survey)
        return law_parameters + (("sigma_int",) if self.survey_scatter else ())

    def bind(self, data: Supernovae) -> BoundSupernovae:
        """Return covariances, distance matrix, weights of the mass step and observed values as arrays.

        Errors are those of `hbm_jax.models.supernovae.bound.bind`, and DataError for data of another type and for host
        masses missing for the mass step.
        """
        return self._bind(data)

    def bind_each(self, data: Sequence[Supernovae]) -> list[BoundSupernovae]:
        """Return bound data of several samples of equal shape, with one structure, so that they can be stacked."""
        bound = [self.bound(sample) for sample in data]
        shapes = [tuple(map(np.shape, jax.tree.leaves(sample))) for sample in bound]
        if len({(jax.tree.structure(sample), shape) for sample, shape in zip(bound, shapes, strict=True)}) > 1:
            bound = [self._bind(sample, like=bound) for sample in data]
        return bound

    def _bind(self, data: Supernovae, like: Sequence[BoundSupernovae] = ()) -> BoundSupernovae:
        """Return bound data, with arrays of the shapes of those of ``like``."""
        advice = "Read them with hbm_jax.data.read_supernovae, or use Supernovae.from_columns."
        self.check_container(data, Supernovae, advice)
        objects, repeats = objects_of(self, data)
        return bind(self, data, objects, repeats, self.noise(objects), self._host_weights(objects), like)

    @property
    def overrides_distmod(self) -> bool:
        """True for a subclass that overrides `distmod`."""
        return type(self).distmod is not Supernova.distmod

    def padded(self, bound: BoundSupernovae) -> tuple[BoundSupernovae, dict[str, int]]:
        """Return the supernovae with some of no weight added, as `hbm_jax.models.base.PopulationModel.padded`.

        Nothing is added with sampled latents, calibration offsets or repeated observations, and for a subclass with its
        own moduli.
        """
        if self.latents != "marginal" or any(part is not None for part in (bound.offsets, bound.design, bound.repeats)):
            return bound, {}
        return padded(bound, padded_size(len(bound))), {"supernova": len(bound)}

    def program(self, bound: BoundSupernovae, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with marginal latents ``recover=True`` draws x1_true, c_true and m_b_true."""
        program.run(self, bound, observed, recover)

    def massive(self, data: Supernovae):
        """Return the weight of the high-mass side of the step for each host, (N,); see `massive_hosts`."""
        return self._mass_step_law.massive(data)

    def _host_weights(self, data: Supernovae):
        """Return `massive`, or None without a mass step."""
        return None if self.laws.host is None else self.massive(data)

    def noise(self, data: Supernovae):
        """Return the covariance of the observed (x1, c, m_b), (N, 3, 3): light-curve fit, lensing and velocity."""
        return noise_covariance(self, data)

    def standardise(self, data: Supernovae, parameters: Mapping[str, float]) -> Standardised:
        """Return the magnitude of each supernova corrected to x1 = c = 0 and a low-mass host, (N,), and its variance.

        Parameters and approximations are those of `hbm_jax.models.supernovae.standardised.standardised`.

        Examples
        --------
        >>> from hbm_jax.data import load_jla
        >>> parameters = {"alpha": 0.14, "beta": 3.1, "delta_M": -0.07, "sigma_int": 0.1}
        >>> Supernova().standardise(load_jla(), parameters).m_b.shape
        (740,)
        """
        variance = redshift_variance(self, data)
        return standardised(self.laws, data, parameters, self.noise(data), variance, self._host_weights(data))

    def distmod(self, data: Supernovae, cosmology: Cosmology):
        """Return the distance modulus of every supernova [mag], (N,); subclasses may override it.

        NaN if the cosmology has no big bang before the largest redshift; the density is zero there. The program uses
        the distance matrix of the bound data. If a subclass overrides this method, the program calls it with the
        container at the redshifts of the distances; in a batch of fits the arrays of this container are traced.
        """
        return expansion.distance_moduli(data, cosmology)

    def cautions_of_draws(self, data: Supernovae | BoundSupernovae, posterior: Any) -> list[str]:
        """Return a sentence about the effective number of injections over the draws of a posterior."""
        if "effective_injections" not in posterior:
            return []
        return effective_injections(len(self.laws.selection.detection({}).values), len(data), posterior)

    def simulate(self, key, data: Supernovae, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``, as `hbm_jax.models.base.PopulationModel.simulate`.

        Raises
        ------
        ValueError
            If a supernova of the design is practically never detected.
        """
        needs_mixture = bool(options.mixture_options(self)) or bool(np.any(data.sigma_z))
        needs_mixture |= self.observations == "joint" or self.scatter != "magnitude"
        # Otherwise the true x1, c and m_b are sites only of the program with latents.
        model = self if needs_mixture else dataclasses.replace(self, latents="noncentred", offsets="sampled")
        data = self.laws.selection.moved_inside(data)
        if self.laws.redshifts.is_population:
            data, parameters = self._with_drawn_redshifts(key, data, parameters)
        observed, truth = simulated(model, key, data, parameters, recover=needs_mixture)
        return self.with_observed(data, observed), truth

    def _with_drawn_redshifts(self, key, data: Supernovae, parameters: Mapping[str, float] | None):
        """Return the design with redshifts of the population, and the parameters with those of the population."""
        law, key = self.laws.redshifts, jax.random.fold_in(key, 1)
        drawn: dict[str, Any] = dict(parameters or {})
        for index, name in enumerate(law.priors):
            prior: Any = drawn.get(name, self.all_priors[name])
            is_free = isinstance(prior, dist.Distribution)
            drawn[name] = float(prior.sample(jax.random.fold_in(key, index)) if is_free else prior)
        return law.drawn(key, data, np.sqrt(redshift_variance(self, data)), drawn), drawn

    def with_observed(self, data: Supernovae, values: Mapping[str, Any]) -> Supernovae:
        """Return the sample with other observed (x1, c, m_b); ValueError for a supernova that was never detected."""
        drawn = values["observed"]
        if np.isnan(drawn).any():
            row = int(np.isnan(drawn).any(axis=-1).argmax())
            raise ValueError(
                "simulate: expected every supernova to be detectable; found a probability of practically 0 for "
                f"{data.name[row]} at z = {data.z_cmb[row]:.4g}. Give m_lim and the other parameters, or remove this "
                "supernova from the design."
            )
        x1, c, m_b = np.moveaxis(drawn, -1, 0)
        return data.replace_observations(m_b=m_b, x1=x1, c=c)

    def tables(self, posterior: Mapping[str, Any]) -> dict[str, Any]:
        """Return the distance-level sample ``nodes`` of free distances, which `HubbleDiagram` fits."""
        if not expansion.has_nodes(self.cosmology):
            return {}
        try:
            return {"nodes": expansion.distance_nodes(self.cosmology, posterior, H0=self._fixed_H0).to_table()}
        except (KeyError, ValueError):  # a node that is fixed, or too few draws
            return {}

    @property
    def _fixed_H0(self) -> float:
        """H0 [km/s/Mpc] if it is fixed, else its default: the modulus has a free offset in any case."""
        prior = self.all_priors["H0"]
        return expansion.H0 if isinstance(prior, dist.Distribution) else float(prior)

    def coords(self, data: Supernovae) -> dict[str, list]:
        """Return the labels of the dimensions."""
        labels = {"supernova": list(data.name), "observable": list(OBSERVABLES)}
        labels |= {"survey": list(data.survey_counts)} if self.by_survey else {}
        return labels | ({"offset": list(data.offset_name)} if data.offset_name else {})

    @property
    def integrated(self) -> tuple[str, ...]:
        """Parameters that are integrated out, and drawn with ``recover=True``."""
        return ("calibration",) if self.offsets == "marginal" else ()

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters, without the dimensionless ones."""
        units = UNITS | dict(expansion.named(self.cosmology).units)
        return units | {name: unit for law in self.laws.used for name, unit in law.units.items()}

    @property
    def chooses_centering(self) -> bool:
        """True if `hbm_jax.sample` chooses the partial non-centring of the sampled latents."""
        return self.latents == "sampled"

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return f"Type Ia supernovae, {expansion.named(self.cosmology).description}, {self.latents} latents"
