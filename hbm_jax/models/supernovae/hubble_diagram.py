"""Cosmology from distance moduli or corrected magnitudes of supernovae with a dense covariance.

    mu_i = mu(z_i; cosmology) + M0 + noise,    noise ~ N(0, C + sigma_int^2).

For a calibrator mu(z_i; cosmology) is replaced by the Cepheid distance modulus of its host, which determines M0 and
therefore H0. M0 is integrated out exactly (Conley et al. 2011, ApJS 192, 1, appendix C; Brout et al. 2022, ApJ 938,
110).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.tree_util import register_dataclass
from numpyro import distributions as dist

from hbm_jax.cosmology import Cosmology, ModulusBasis, RedshiftMatrix, breaks_of, modulus_basis
from hbm_jax.cosmology.compressed import CMB, STANDARD_RADIATION, compressed, drag_horizon
from hbm_jax.data import DataError, DistanceModuli, GaussianConstraints, read_constraints
from hbm_jax.distributions import CorrelatedNormal, Offset, ProjectedNormal, Projection, projected, whiten
from hbm_jax.models import expansion
from hbm_jax.models.base import configuration, simulated
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy

# The prior of M0 is effectively flat: its scale of 100 mag shifts M0 by 1e-6 of its error.
DEFAULT_PRIORS: dict[str, Prior] = {"M0": dist.Normal(0.0, 100.0), "sigma_int": dist.HalfNormal(0.3)}
FREE_H0: Prior = dist.Uniform(40.0, 100.0)
BARYONS: Prior = dist.Uniform(0.005, 0.1)
SOUND_HORIZON: Prior = dist.Uniform(80.0, 250.0)

UNITS = {"H0": "km/s/Mpc", "M0": "mag", "sigma_int": "mag", "r_d": "Mpc"}


@register_dataclass
@dataclass(frozen=True, eq=False)
class ProjectedModuli:
    """A sample in the coordinates in which its covariance is diagonal, as precomputed for the log density.

    `HubbleDiagram.without_each_survey` returns one for every subset of a sample, as a batch. It is a pytree whose
    arrays have the same shape for every subset: omitted objects become rows of zeros.

    Attributes
    ----------
    value : (N,)
        Projected moduli, minus the part that does not depend on the cosmology.
    projection : Projection
        Projection of the basis of the moduli.
    basis : ModulusBasis
        Nodes of the moduli; its matrix and fixed part are empty.
    calibrated : bool
        Whether the subset contains calibrators.
    """

    value: Any
    projection: Projection
    basis: ModulusBasis
    calibrated: bool = field(default=False, metadata={"static": True})

    def __len__(self) -> int:
        return len(self.value)


@dataclass(frozen=True, kw_only=True)
class HubbleDiagram:
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
    constraints : GaussianConstraints, mapping or path, optional
        Gaussian constraints from other experiments, which multiply the prior; see `hbm_jax.data.GaussianConstraints`.
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

    cosmology: str | expansion.Expansion = field(default="lcdm", metadata={"help": expansion.HELP})
    intrinsic_scatter: bool = field(default=False, metadata={"help": "whether to add scatter to the covariance"})
    scatter_surveys: tuple[str, ...] = field(default=(), metadata={"help": "surveys with scatter; all by default"})
    calibrated: bool = field(default=False, metadata={"help": "whether calibrators determine H0"})
    constraints: Any = field(default=None, hash=False, metadata={"help": "table of Gaussian constraints, such as BAO"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        expansion.named(self.cosmology)  # raises for unknown names
        object.__setattr__(self, "scatter_surveys", tuple(self.scatter_surveys))
        if self.scatter_surveys and not self.intrinsic_scatter:
            raise ValueError("HubbleDiagram: scatter_surveys expects intrinsic_scatter=True; found False.")
        if isinstance(self.constraints, Mapping):
            object.__setattr__(self, "constraints", GaussianConstraints.from_config(self.constraints))
        elif self.constraints is not None and not isinstance(self.constraints, GaussianConstraints):
            object.__setattr__(self, "constraints", read_constraints(self.constraints))
        object.__setattr__(self, "priors", dict(self.priors))
        prior = self.all_priors["M0"]
        if isinstance(prior, dist.Distribution) and not isinstance(prior, dist.Normal):
            raise ValueError(
                f"prior.M0: expected Normal(loc, scale) or a number, because M0 is integrated out; found "
                f"{type(prior).__name__}. Normal(0, 1e6) is flat."
            )

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number fixes a parameter."""
        defaults = expansion.default_priors(self.cosmology)
        c = self.constraints
        if self.calibrated or (c is not None and c.needs_hubble):
            defaults["H0"] = FREE_H0
        if c is not None and c.needs_baryons:
            defaults["omega_b"] = BARYONS
        if c is not None and c.needs_sound_horizon and ("omega_b" not in defaults or "r_d" in self.priors):
            defaults["r_d"] = SOUND_HORIZON
        defaults["M0"] = DEFAULT_PRIORS["M0"]
        if self.intrinsic_scatter:
            defaults["sigma_int"] = DEFAULT_PRIORS["sigma_int"]
        return complete_priors(defaults, self.priors, f"HubbleDiagram(cosmology={self._name!r})")

    @property
    def _name(self) -> str:
        return expansion.named(self.cosmology).name

    def __call__(self, data: DistanceModuli | ProjectedModuli, observed: bool = True, recover: bool = False):
        """Run the NumPyro program.

        Parameters
        ----------
        data : DistanceModuli or ProjectedModuli
            The sample. With ``observed=False`` its redshifts and covariance are the design, and the moduli are drawn.
        observed : bool
            Whether to condition on the observed values.
        recover : bool
            Whether to draw M0 from its exact conditional posterior.
        """
        self._check(data)
        priors = self.all_priors
        degeneracy = supernova_degeneracy if self.constraints is None else None
        cosmology = expansion.sample_cosmology(self.cosmology, priors, degeneracy)
        nuisance_names: list[str] = [name for name in ("omega_b", "r_d", "sigma_int") if name in priors]
        nuisance = {name: sample_prior(name, priors[name]) for name in nuisance_names}
        if self.constraints is not None:
            cosmology = self._constrain(cosmology, nuisance, observed)
        prior: Any = priors["M0"]
        if not observed:
            prior = sample_prior("M0", prior)
        normal = isinstance(prior, dist.Normal)
        offset = Offset(float(prior.loc), float(prior.scale)) if normal else Offset(prior, 0.0)
        scatter = nuisance.get("sigma_int", 0.0)
        if isinstance(data, ProjectedModuli):
            basis, value = data.basis, data.value
        else:
            basis, value = self._basis(data), data.mu
        values = basis.values(cosmology)
        if observed:
            # A cosmology without a big bang has zero density. A NaN in the moduli would also make gradients NaN.
            finite = jnp.all(jnp.isfinite(values))
            numpyro.factor("_big_bang", jnp.where(finite, 0.0, -jnp.inf))
            values = jnp.where(finite, values, 0.0)
        likelihood: ProjectedNormal
        if isinstance(data, ProjectedModuli):
            likelihood = ProjectedNormal(data.projection, values, scatter, offset)
        else:
            whitening = whiten(data.covariance, self._weights(data))
            fixed, matrix = _calibrated(data, basis)
            likelihood = CorrelatedNormal(whitening, fixed, projected(whitening, matrix), values, scatter, offset)
        drawn = numpyro.sample("observed", likelihood, obs=value if observed else None)
        if recover and normal:
            numpyro.deterministic("M0", likelihood.offset_given(drawn).sample(numpyro.prng_key()))

    def _check(self, data) -> None:
        if not isinstance(data, DistanceModuli | ProjectedModuli):
            raise DataError(
                f"HubbleDiagram: expected DistanceModuli; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_distance_moduli, or use DistanceModuli.from_columns."
            )
        if isinstance(data, ProjectedModuli):
            calibrators = int(data.calibrated)
        elif any(isinstance(array, jax.core.Tracer) for array in (data.covariance, data.z_cmb, data.mu_calibrator)):
            raise DataError(
                "HubbleDiagram: expected a sample with concrete covariance and redshifts; found traced arrays. For a "
                "batch of subsets use HubbleDiagram.without_each_survey."
            )
        else:
            calibrators = int(data.is_calibrator.sum())
        if calibrators and not self.calibrated:
            raise DataError(
                f"HubbleDiagram: expected calibrated=True for a sample with {calibrators} calibrators, or one read "
                "with calibrators=False; found calibrated=False."
            )
        if self.calibrated and not calibrators:
            raise DataError("HubbleDiagram: calibrated=True expects calibrators in the sample; found none.")

    def _constrain(self, cosmology: Any, nuisance: Mapping[str, Any], observed: bool) -> Cosmology:
        """Add the log density of the constraints; return the cosmology with the radiation that they require."""
        c: GaussianConstraints = self.constraints
        if not isinstance(cosmology, Cosmology):
            raise ValueError(
                f"HubbleDiagram: constraints expect a cosmology with an expansion rate; found "
                f"{type(cosmology).__name__}, which only has distances."
            )
        if set(CMB) & set(c.quantity):
            cosmology = dataclasses.replace(cosmology, radiation=STANDARD_RADIATION)
        if observed:
            omega_b = nuisance.get("omega_b")
            r_d = nuisance.get("r_d")
            if r_d is None and omega_b is not None:
                r_d = drag_horizon(cosmology.Om0 * (cosmology.H0 / 100.0) ** 2, omega_b)
            predicted = compressed(c.quantity, np.asarray(c.z), cosmology, omega_b, r_d)
            residual = jnp.matmul(np.linalg.inv(np.linalg.cholesky(c.covariance)), predicted - c.value)
            finite = jnp.all(jnp.isfinite(residual))
            chi2 = jnp.sum(jnp.where(finite, residual, 0.0) ** 2)
            numpyro.factor("constraints", jnp.where(finite, -0.5 * chi2, -jnp.inf))
        return cosmology

    def _basis(self, data: DistanceModuli) -> ModulusBasis:
        return modulus_basis(data.z_cmb, data.z_hel, breaks=self._breaks)

    @property
    def _breaks(self) -> tuple[float, ...]:
        chosen = expansion.named(self.cosmology)
        return breaks_of(chosen.build({"H0": 70.0} | dict.fromkeys(chosen.parameters, 0.3)))

    def _weights(self, data: DistanceModuli) -> np.ndarray | None:
        """Return 1 for objects with intrinsic scatter and 0 for the others, or None if there is no such scatter."""
        if not self.intrinsic_scatter:
            return None
        if not self.scatter_surveys:
            return np.ones(len(data))
        for survey in self.scatter_surveys:
            if survey not in data.survey:
                raise DataError(
                    f"HubbleDiagram: scatter_surveys: expected names among {', '.join(data.survey_counts)}; found "
                    f"{survey!r}."
                )
        return np.array([float(survey in self.scatter_surveys) for survey in data.survey])

    def without_each_survey(self, data: DistanceModuli) -> dict[str, ProjectedModuli]:
        """Return the whole sample, and the sample without each survey in turn, for one batch of fits.

        Parameters
        ----------
        data : DistanceModuli
            Sample of two or more surveys.

        Returns
        -------
        dict of str to ProjectedModuli
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
        if len(data.survey_counts) < 2:
            surveys = ", ".join(data.survey_counts)
            raise DataError(f"without_each_survey: expected two surveys or more; found {surveys}.")
        subsets = {"all": np.ones(len(data), bool)}
        for omitted in data.survey_counts:
            subsets[f"without {omitted}"] = np.array([survey != omitted for survey in data.survey])
        return {name: self._projected(data, keep) for name, keep in subsets.items()}

    def _projected(self, data: DistanceModuli, keep: np.ndarray) -> ProjectedModuli:
        """Project a subset of a sample, with rows of zeros for the omitted objects."""
        self._check(data)
        basis = self._basis(data)
        fixed, matrix = _calibrated(data, basis)
        weights = self._weights(data)
        whitening = whiten(data.covariance[np.ix_(keep, keep)], None if weights is None else weights[keep])
        projection = projected(whitening, matrix[keep])
        num_omitted = int((~keep).sum())
        padded = [np.pad(array, [(0, num_omitted)] + [(0, 0)] * (array.ndim - 1)) for array in projection[:3]]
        value = np.pad(whitening.transform @ (data.mu[keep] - fixed[keep]), (0, num_omitted))
        empty = basis._replace(fixed=np.zeros(0), matrix=np.zeros((0, 0)))
        calibrated = bool(data.is_calibrator[keep].any())
        log_det, num = np.float64(projection.log_det), np.float64(projection.num)
        projection = Projection(padded[0], padded[1], padded[2], log_det, num)
        return ProjectedModuli(value, projection, empty, calibrated)

    def distmod(self, data: DistanceModuli, cosmology: Any):
        """Return the distance modulus of every object [mag], (N,): of a calibrator that of its host, else mu(z)."""
        mu = RedshiftMatrix(data.z_cmb, data.z_hel, breaks=breaks_of(cosmology)).distmod(cosmology)
        return jnp.where(data.is_calibrator, data.mu_calibrator, mu)

    def simulate(self, key, data: DistanceModuli, parameters: Mapping[str, float] | None = None):
        """Draw a simulated sample with the design of ``data``.

        Parameters
        ----------
        key : jax.Array
            Random key.
        data : DistanceModuli
            Redshifts, covariance and calibrators.
        parameters : mapping of str to float, optional
            True values by name; parameters not named are drawn from their priors, except M0: it is 0 for moduli and
            -19.3 for magnitudes unless ``priors`` has one. Constraints are not drawn.

        Returns
        -------
        DistanceModuli, dict
            The sample with new moduli, and the true value of every parameter.
        """
        true_values = dict(parameters or {})
        if "M0" not in self.priors:
            true_values = {"M0": 0.0 if data.quantity == "mu" else -19.3} | true_values
        observed, truth = simulated(self, key, data, true_values)
        return data.replace_observations(observed["observed"]), truth

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site."""
        return {"observed": ["supernova"]}

    def coords(self, data: DistanceModuli) -> dict[str, list]:
        """Return the labels of the dimensions."""
        return {"supernova": list(data.name)} if isinstance(data, DistanceModuli) else {}

    @property
    def integrated(self) -> tuple[str, ...]:
        """Parameters that are integrated out, and drawn with ``recover=True``."""
        return ("M0",) if isinstance(self.all_priors["M0"], dist.Distribution) else ()

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters, without the dimensionless ones."""
        return UNITS

    @property
    def target_accept_prob(self) -> float:
        """Default of `hbm_jax.sample`; higher, for smaller steps, with binned or user-defined dark energy.

        The posterior has corners where an unconstrained bin borders a constrained one: with 0.8 there were 18
        divergences in 4000 draws of three bins with Planck, DESI and Union3.
        """
        return 0.8 if self._name in expansion.FREE else 0.95

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
        config = configuration(self)
        return {name: value for name, value in config.items() if name != "constraints" or value is not None}


def _calibrated(data: DistanceModuli, basis: ModulusBasis) -> tuple[np.ndarray, np.ndarray]:
    """Return the fixed part and the basis of the moduli; those of calibrators are fixed at their measured values."""
    calibrator = data.is_calibrator
    fixed = np.where(calibrator, data.mu_calibrator, basis.fixed)
    return fixed, np.where(calibrator[:, None], 0.0, basis.matrix)
