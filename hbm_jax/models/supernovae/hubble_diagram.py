"""Cosmology from distance moduli or corrected magnitudes of supernovae with a dense covariance.

    mu_i = mu(z_i; cosmology) + M0 + noise,    noise ~ N(0, C + sigma_int^2).

For a calibrator mu(z_i; cosmology) is replaced by the Cepheid distance modulus of its host, which determines M0 and
therefore H0. M0 is integrated out exactly (Conley et al. 2011, ApJS 192, 1, appendix C; Brout et al. 2022, ApJ 938,
110).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.data import DataError, DistanceModuli
from hbm_jax.distributions import Offset
from hbm_jax.models import expansion
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.supernovae import bound_moduli, cosmology_constraints
from hbm_jax.models.supernovae.bound_moduli import BoundModuli, bind, check, scatter_weights, subsets
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy
from hbm_jax.validation import OptionError, Remedy

# The prior of M0 is effectively flat: its scale of 100 mag shifts M0 by 1e-6 of its error.
DEFAULT_PRIORS: dict[str, Prior] = {"M0": dist.Normal(0.0, 100.0), "sigma_int": dist.HalfNormal(0.3)}
UNITS = {"H0": "km/s/Mpc", "M0": "mag", "sigma_int": "mag", "r_d": "Mpc"}


@dataclass(frozen=True, kw_only=True)
class HubbleDiagram(PopulationModel):
    """Model of a sample of distance moduli; a call with data is a NumPyro program.

    Parameters
    ----------
    cosmology : str or Expansion
        ``"lcdm"`` (flat), ``"olcdm"`` (with curvature), ``"wcdm"`` (flat), ``"owcdm"``, ``"w0wacdm"`` (flat),
        ``"binned(0.3, 0.7)"`` (flat, w constant in bins of redshift), or a user-defined `hbm_jax.models.Expansion`.
    intrinsic_scatter : bool
        Whether an intrinsic scatter sigma_int is added to the covariance. Published covariances already include it.
    scatter_surveys : sequence of str
        Surveys with intrinsic scatter; empty for all surveys.
    calibrated : bool
        Whether calibrators of known distance determine H0.
    constraints : GaussianConstraints, mapping, str or path, optional
        Gaussian constraints from other experiments, which multiply the prior; see `hbm_jax.data.GaussianConstraints`.
        A name of `hbm_jax.data.load_constraints`, such as ``"desi-dr2-bao"``, loads published ones; names and files
        joined by plus signs, as in ``"planck-2018 + desi-dr2-bao"``, are independent measurements.
        Those of the microwave background add a parameter omega_b and standard radiation. Distances of baryon acoustic
        oscillations depend on the sound horizon r_d, a parameter unless omega_b is one: then r_d is computed from
        omega_m and omega_b (fit of Brieden et al. 2023).
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name; a number fixes the parameter. `HubbleDiagram.all_priors` has the defaults. H0 is
        fixed at 70 km/s/Mpc unless calibrators or constraints measure it. The prior of M0 must be normal, and is
        effectively flat if it is wide. M0 is integrated out; `hbm_jax.latents` draws it from its conditional
        posterior.

    Raises
    ------
    ValueError
        For an unknown option or prior name (the message suggests the nearest), or a prior of M0 that is not normal.

    Notes
    -----
    The covariance is decomposed once per sample, in 2 s for 1700 objects; a gradient then takes some 80 microseconds
    (``benchmarks/hubble_diagram.py``). The log density agrees with dense linear algebra and astropy's distances to 1e-6
    (``tests/models/test_hubble_diagram.py``).

    Examples
    --------
    >>> list(HubbleDiagram(cosmology="wcdm", intrinsic_scatter=True).all_priors)
    ['H0', 'Om0', 'w0', 'M0', 'sigma_int']
    """

    Bound: ClassVar[type] = BoundModuli

    cosmology: str | expansion.Expansion = field(default="lcdm", metadata={"help": expansion.HELP})
    intrinsic_scatter: bool = field(default=False, metadata={"help": "whether to add scatter to the covariance"})
    scatter_surveys: tuple[str, ...] = field(default=(), metadata={"help": "surveys with scatter; all by default"})
    calibrated: bool = field(default=False, metadata={"help": "whether calibrators determine H0"})
    constraints: Any = field(
        default=None,
        hash=False,
        metadata={"help": "tables or names of Gaussian constraints, such as 'planck-2018 + desi-dr2-bao'"},
    )
    dims: ClassVar[dict[str, list[str]]] = {"observed": ["supernova"]}
    units = UNITS

    def check_options(self) -> None:
        """Read the constraints; raise OptionError for surveys of scatter without scatter, or another prior of M0."""
        expansion.named(self.cosmology)
        object.__setattr__(self, "scatter_surveys", tuple(self.scatter_surveys))
        if self.scatter_surveys and not self.intrinsic_scatter:
            message = "HubbleDiagram: scatter_surveys expects intrinsic_scatter=True; found False."
            raise OptionError(message, [Remedy("intrinsic_scatter", True)])
        object.__setattr__(self, "constraints", cosmology_constraints.constraints_from(self.constraints))
        prior = self.all_priors["M0"]
        if isinstance(prior, dist.Distribution) and not isinstance(prior, dist.Normal):
            raise OptionError(
                f"prior.M0: expected Normal(loc, scale) or a number, because M0 is integrated out; found "
                f"{type(prior).__name__}. Normal(0, 1e6) is flat."
            )

    @property
    def label(self) -> str:
        """Name of the model in error messages about priors."""
        return f"HubbleDiagram(cosmology={self._name!r})"

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter, in the order of summary tables; a number fixes a parameter."""
        defaults = expansion.default_priors(self.cosmology)
        if self.calibrated:
            defaults["H0"] = cosmology_constraints.FREE_H0
        if self.constraints is not None:
            defaults |= cosmology_constraints.default_priors(self.constraints, self.priors)
        defaults["M0"] = DEFAULT_PRIORS["M0"]
        if self.intrinsic_scatter:
            defaults["sigma_int"] = DEFAULT_PRIORS["sigma_int"]
        return defaults

    @property
    def blinded(self) -> tuple[str, ...]:
        """Parameters that ``blind=True`` of `hbm_jax.sample` hides: those of the cosmology and of its constraints."""
        names = expansion.result_parameters(self.cosmology, self.all_priors)
        constrained = [name for name in ("omega_b", "r_d") if isinstance(self.all_priors.get(name), dist.Distribution)]
        return tuple(name for name in (*names, *constrained) if name not in self.integrated)

    @property
    def _name(self) -> str:
        return expansion.named(self.cosmology).name

    def bind(self, data: DistanceModuli) -> BoundModuli:
        """Return the decomposed covariance, the nodes of the moduli and the observed moduli as arrays.

        Raises
        ------
        DataError
            For data of another type, calibrators without ``calibrated=True`` or the reverse, or a survey of
            ``scatter_surveys`` that is not in the sample.
        """
        advice = "Read them with hbm_jax.data.read_distance_moduli, or use DistanceModuli.from_columns."
        self.check_container(data, DistanceModuli, advice)
        check(data, self.calibrated)
        return self._bound_with(data)

    def _bound_with(self, data: DistanceModuli, **options: Any) -> BoundModuli:
        """Return bound data, with a subset or a range of redshifts as in `bound_moduli.bind`."""
        weights = scatter_weights(data, self.scatter_surveys) if self.intrinsic_scatter else None
        return bind(data, expansion.named(self.cosmology).breaks, weights, self._known_scatter, **options)

    def bind_each(self, data: Sequence[DistanceModuli]) -> list[BoundModuli]:
        """Return bound data of several samples of equal shape, with one structure, so that they can be stacked."""
        bound = [self.bound(sample) for sample in data]
        if len({np.shape(sample.basis.log_u) for sample in bound}) == 1:
            return bound
        # Bases over a common range of redshifts have equal shapes.
        z_max = max(float(sample.z_cmb.max()) for sample in data)
        return [self._bound_with(sample, z_max=z_max) for sample in data]

    def padded(self, bound: BoundModuli) -> tuple[BoundModuli, dict[str, int]]:
        """Return the moduli for the log density alone, as `hbm_jax.models.base.PopulationModel.padded`.

        Rows without weight are added where the scatter is a parameter; otherwise the number of rows is that of nodes.
        """
        return bound_moduli.padded(bound), {"supernova": len(bound)}

    def without_each_survey(self, data: DistanceModuli) -> dict[str, BoundModuli]:
        """Return the whole sample, and the sample without each survey in turn, for one batch of fits.

        Parameters
        ----------
        data : DistanceModuli
            Sample of two or more surveys.

        Returns
        -------
        dict of str to BoundModuli
            ``"all"``, then ``"without X"`` for each survey X.

        Raises
        ------
        DataError
            If the sample has a single survey.

        Examples
        --------
        >>> samples = model.without_each_survey(data)  # doctest: +SKIP
        >>> fits = hbm_jax.fit_each(model, list(samples.values()), names=list(samples))  # doctest: +SKIP
        """
        masks = subsets(data)
        for keep in masks.values():
            check(data, self.calibrated, keep)
        return {name: self._bound_with(data, keep=keep) for name, keep in masks.items()}

    @property
    def _known_scatter(self) -> float | None:
        """Intrinsic scatter, None where it is a parameter."""
        prior = self.all_priors.get("sigma_int", 0.0)
        return None if isinstance(prior, dist.Distribution) else float(prior)

    def program(self, bound: BoundModuli, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; ``recover=True`` draws M0 from its exact conditional posterior."""
        priors = self.all_priors
        if bound.scatter != self._known_scatter:
            scatters = self._known_scatter, bound.scatter
            expected, found = ("a free value" if scatter is None else f"{scatter:g} mag" for scatter in scatters)
            raise DataError(
                f"HubbleDiagram: expected data bound to a model with the same intrinsic scatter, {expected}; found "
                f"{found}. Bind them to this model."
            )
        degeneracy = supernova_degeneracy if self.constraints is None else None
        cosmology = expansion.sample_cosmology(self.cosmology, priors, degeneracy)
        names: list[str] = [name for name in ("omega_b", "r_d", "sigma_int") if name in priors]
        nuisance = {name: sample_prior(name, priors[name]) for name in names}
        if self.constraints is not None:
            cosmology = cosmology_constraints.with_constraints(self.constraints, cosmology, nuisance, observed)
        prior: Any = priors["M0"] if observed else sample_prior("M0", priors["M0"])
        normal = isinstance(prior, dist.Normal)
        offset = Offset(prior.loc, prior.scale) if normal else Offset(prior, 0.0)
        values = bound.basis.values(cosmology)
        if observed:
            values = expansion.require_big_bang(values)
        likelihood, moduli = bound.likelihood(values, nuisance.get("sigma_int", 0.0), offset)
        drawn = numpyro.sample("observed", likelihood, obs=moduli if observed else None)
        if recover and normal:
            numpyro.deterministic("M0", likelihood.offset_given(drawn).sample(numpyro.prng_key()))

    def distmod(self, data: DistanceModuli, cosmology: Any):
        """Return the distance modulus of every object [mag], (N,): of the host of a calibrator, else mu(z)."""
        return jnp.where(data.is_calibrator, data.mu_calibrator, expansion.distance_moduli(data, cosmology))

    def simulate(self, key, data: DistanceModuli, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``, as `hbm_jax.models.base.PopulationModel.simulate`.

        M0 is 0 for moduli and -19.3 for magnitudes unless ``priors`` or ``parameters`` has one. Constraints are not
        drawn.
        """
        true_values = dict(parameters or {})
        if "M0" not in self.priors:
            true_values = {"M0": 0.0 if data.quantity == "mu" else -19.3} | true_values
        return super().simulate(key, data, true_values)

    def coords(self, data: DistanceModuli) -> dict[str, list]:
        """Return the labels of the dimensions."""
        return {"supernova": list(data.name)} if isinstance(data, DistanceModuli) else {}

    @property
    def integrated(self) -> tuple[str, ...]:
        """Parameters that are integrated out, and drawn with ``recover=True``."""
        return ("M0",) if isinstance(self.all_priors["M0"], dist.Distribution) else ()

    @property
    def target_accept_prob(self) -> float:
        """Default of `hbm_jax.sample`; higher with constraints, and with binned or user-defined dark energy.

        Together with the narrow constraints of Planck the posterior is curved: with 0.8 there were 1 to 15 divergences
        in 4000 draws of w0, wa with Planck, DESI and Union3 (5 of 6 seeds), with 0.95 none. That of bins has corners
        where an unconstrained bin borders a constrained one.
        """
        return 0.8 if self._name in expansion.FREE and self.constraints is None else 0.95

    @property
    def description(self) -> str:
        """One-line description for reports."""
        parts = [expansion.named(self.cosmology).description, "M0 integrated out"]
        if self.intrinsic_scatter:
            parts.append(f"intrinsic scatter{' of ' + ', '.join(self.scatter_surveys) if self.scatter_surveys else ''}")
        if self.calibrated:
            parts.append("calibrators")
        if self.constraints is not None:
            parts.append(self.constraints.describe().rstrip("."))
        return f"Hubble diagram, {', '.join(parts)}"

    def to_config(self) -> dict:
        """Return options as plain values and priors as text; ``HubbleDiagram(**config)`` is the same model."""
        config = super().to_config()
        return {name: value for name, value in config.items() if name != "constraints" or value is not None}
