"""Supernova cosmology from peak magnitudes with a dense covariance that depends on alpha and beta.

    m_b = M0 + mu(z; cosmology) - alpha x1 + beta c + delta_M [host mass > 1e10 Msun] + N(0, C(alpha, beta)),

where x1 and c are the observed values and C is defined in `hbm_jax.data.CorrelatedSupernovae`. This is the likelihood
of SNLS3 (Conley et al. 2011, ApJS 192, 1) and JLA (Betoule et al. 2014, A&A 568, A22), normalised.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
import numpyro
from jax.tree_util import register_dataclass
from numpyro import distributions as dist

from hbm_jax.cosmology import RedshiftMatrix
from hbm_jax.data import CorrelatedSupernovae
from hbm_jax.data.columns import index_of_groups
from hbm_jax.distributions.normal.block_normal import BlockNormal
from hbm_jax.models import expansion
from hbm_jax.models.base import PopulationModel
from hbm_jax.models.priors import Prior, sample_prior
from hbm_jax.models.supernovae.correlated_table import CorrelatedTable, coefficients, tabulate
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy
from hbm_jax.models.supernovae.laws import MassStep

DEFAULT_PRIORS: dict[str, Prior] = {
    "M0": dist.Normal(-19.3, 1.0),
    "alpha": dist.Normal(0.0, 2.0),
    "beta": dist.Normal(0.0, 5.0),
    "delta_M": dist.Normal(0.0, 0.2),
    "sigma_int": dist.HalfNormal(0.3),
}
UNITS = {"H0": "km/s/Mpc", "M0": "mag", "alpha": "mag", "delta_M": "mag", "sigma_int": "mag"}


@register_dataclass
@dataclass(frozen=True, eq=False)
class BoundCorrelatedSupernovae:
    """N supernovae bound to a `CorrelatedSupernova`.

    Attributes
    ----------
    m_b, x1, c : (N,)
        Observed values.
    distances : RedshiftMatrix
        Distances to the N redshifts.
    massive : (N,)
        Weight of delta_M.
    blocks : (6, N, N)
        Blocks of the covariance, including the errors of the light-curve fits.
    diagonal : (N,)
        Variances of lensing and peculiar velocity, and of the published scatter unless it is a parameter [mag^2].
    survey : (N,) or None
        Index of the survey of each supernova; None where the scatter does not differ between surveys.
    table : CorrelatedTable or None
        Interpolated likelihood.
    num_surveys : int
        Number of surveys; 0 where the scatter does not differ between them.
    """

    m_b: Any
    x1: Any
    c: Any
    distances: RedshiftMatrix
    massive: Any
    blocks: Any
    diagonal: Any
    survey: Any
    table: CorrelatedTable | None
    num_surveys: int = field(metadata={"static": True})

    def __len__(self) -> int:
        return len(self.m_b)


@dataclass(frozen=True, kw_only=True)
class CorrelatedSupernova(PopulationModel):
    """Model of supernovae with a covariance that depends on alpha and beta; a call with data is a NumPyro program.

    Parameters
    ----------
    cosmology : str or Expansion
        Expansion history, as for `hbm_jax.models.Supernova`.
    scatter : str
        Intrinsic scatter: ``"published"``, that of the data (``variance_coherent``); ``"common"``, a parameter
        sigma_int; or ``"survey"``, a parameter sigma_int for each survey.
    mass_step : bool
        Whether the magnitudes of supernovae in hosts above 1e10 solar masses are offset by delta_M.
    tabulate : bool
        Whether the likelihood is interpolated in a precomputed table of alpha and beta. Only with the
        published scatter, ``cosmology`` among ``lcdm, olcdm, wcdm, owcdm, w0wacdm``, and at least 200 supernovae;
        otherwise the covariance is factorised at every step. The log density agrees with the factorisation to 1e-8, and
        a step is a hundred times as fast. Alpha and beta are confined to the table, which contains every point where
        the likelihood exceeds exp(-32) of its maximum.
    priors : mapping of str to Distribution, float or str
        Overrides by parameter name; a number fixes the parameter.

    Raises
    ------
    ValueError
        For an unknown cosmology, scatter or prior name.

    Notes
    -----
    x1 and c have no population model. Their errors enter C, which is a good approximation where these errors are small
    compared with the width of the populations. `hbm_jax.models.Supernova` does not need this approximation, but
    represents systematic errors by calibration offsets.

    Examples
    --------
    >>> sorted(CorrelatedSupernova(cosmology="wcdm").all_priors)
    ['H0', 'M0', 'Om0', 'alpha', 'beta', 'delta_M', 'w0']
    """

    Bound: ClassVar[type] = BoundCorrelatedSupernovae

    cosmology: str | expansion.Expansion = field(default="lcdm", metadata={"help": expansion.HELP})
    scatter: Literal["published", "common", "survey"] = field(
        default="published", metadata={"help": "intrinsic scatter: published, common, survey"}
    )
    mass_step: bool = field(default=True, metadata={"help": "whether massive hosts have a magnitude offset"})
    tabulate: bool = field(default=True, metadata={"help": "whether the likelihood is interpolated in a table"})
    dims: ClassVar[dict[str, list[str]]] = {"observed": ["supernova"]}
    units = UNITS

    def check_options(self) -> None:
        """Raise ValueError for an unknown cosmology."""
        expansion.named(self.cosmology)

    @property
    def label(self) -> str:
        """Name of the model in error messages about priors."""
        return f"CorrelatedSupernova(cosmology={self.cosmology!r})"

    @property
    def blinded(self) -> tuple[str, ...]:
        """Parameters that ``blind=True`` of `hbm_jax.sample` hides: those of the cosmology."""
        return expansion.result_parameters(self.cosmology, self.all_priors)

    @property
    def default_priors(self) -> dict[str, Prior]:
        """Default prior of every parameter, in the order of summary tables; a number fixes a parameter."""
        relation = dict(DEFAULT_PRIORS)
        if not self.mass_step:
            del relation["delta_M"]
        if self.scatter == "published":
            del relation["sigma_int"]
        return expansion.default_priors(self.cosmology) | relation

    def bind(self, data: CorrelatedSupernovae) -> BoundCorrelatedSupernovae:
        """Return covariance blocks, distance matrix, table of the likelihood and observed values as arrays.

        Parameters
        ----------
        data : CorrelatedSupernovae
            The sample of N supernovae. The time for the table grows as N^3: seconds for several hundred supernovae.

        Raises
        ------
        DataError
            For data of another type, or host masses missing for the mass step.
        """
        self.check_container(data, CorrelatedSupernovae, "Read them with hbm_jax.data.read_correlated_supernovae.")
        sne, surveys, by_survey = data.sne, list(data.sne.survey_counts), self.scatter == "survey"
        massive = MassStep().massive(sne) if self.mass_step else np.zeros(len(data))
        diagonal = sne.variance_lensing + sne.variance_velocity
        table = None
        if self.scatter == "published":
            diagonal = sne.variance_coherent + diagonal
            if self.tabulate and self.cosmology in expansion.FREE:
                table = tabulate(data, massive, diagonal)
        return BoundCorrelatedSupernovae(
            m_b=sne.m_b,
            x1=sne.x1,
            c=sne.c,
            distances=expansion.distance_matrix(self.cosmology, sne),
            massive=massive,
            blocks=data.total_blocks,
            diagonal=diagonal,
            survey=index_of_groups(data.survey, surveys) if by_survey else None,
            table=table,
            num_surveys=len(surveys) if by_survey else 0,
        )

    def bind_each(self, data: Sequence[CorrelatedSupernovae]) -> list[BoundCorrelatedSupernovae]:
        """Return bound data of several samples of equal shape; without tables, whose shapes depend on the values."""
        model, z_max = self.dense(), max(float(sample.sne.z_cmb.max()) for sample in data)
        bound = [model.bound(sample) for sample in data]
        if len({np.shape(sample.distances.nodes) for sample in bound}) == 1:
            return bound
        # Matrices over a common range of redshifts have equal shapes.
        matrices = [expansion.distance_matrix(self.cosmology, sample.sne, z_max) for sample in data]
        return [replace(sample, distances=matrix) for sample, matrix in zip(bound, matrices, strict=True)]

    def program(self, bound: BoundCorrelatedSupernovae, observed: bool, recover: bool) -> None:
        """Run the NumPyro program; with ``observed=False`` m_b is drawn, and everything else is the design."""
        table = bound.table if observed else None
        cosmology = expansion.sample_cosmology(self.cosmology, self.all_priors, supernova_degeneracy)
        p: dict[str, Any] = {"delta_M": 0.0}
        for name in DEFAULT_PRIORS:
            if name in self.all_priors:
                p[name] = self._sample(name, bound, table)
        if table is not None:
            density = table.log_density(p["alpha"], p["beta"], p["M0"], p["delta_M"], cosmology)
            numpyro.factor("observed", jnp.where(jnp.isfinite(density), density, -jnp.inf))
            return
        modulus = bound.distances.distmod(cosmology)
        if observed:
            modulus = expansion.require_big_bang(modulus)
        loc = modulus + p["M0"] + p["delta_M"] * bound.massive - p["alpha"] * bound.x1 + p["beta"] * bound.c
        kappa = coefficients(jnp.asarray(p["alpha"]), jnp.asarray(p["beta"]))
        normal = BlockNormal(loc, bound.diagonal + p.get("sigma_int", 0.0) ** 2, kappa, bound.blocks)
        numpyro.sample("observed", normal, obs=bound.m_b if observed else None)

    def _sample(self, name, bound, table):
        """Sample a parameter of the relation; return a number, or (N,) where it differs between surveys."""
        prior = self.all_priors[name]
        if name == "sigma_int" and self.scatter == "survey" and isinstance(prior, dist.Distribution):
            with numpyro.plate("survey", bound.num_surveys):
                return jnp.asarray(numpyro.sample(name, prior))[bound.survey]
        if table is not None and name in ("alpha", "beta") and isinstance(prior, dist.Distribution):
            # A uniform site keeps the value inside the table; the factor restores the density of the prior.
            low, high = getattr(table, name)
            value = jnp.asarray(numpyro.sample(name, dist.Uniform(low, high)))
            numpyro.factor(f"_{name}_prior", prior.log_prob(value) + np.log(high - low))
            return value
        return sample_prior(name, prior)

    def simulate(self, key, data: CorrelatedSupernovae, parameters=None):
        """Draw magnitudes with the design of ``data``; return the simulated sample and the true parameters."""
        if self.tabulate:  # draws do not use the table
            return self.dense().simulate(key, data, parameters)
        return super().simulate(key, data, parameters)

    def with_observed(self, data: CorrelatedSupernovae, values) -> CorrelatedSupernovae:
        """Return the sample with other magnitudes."""
        return data.replace_observations(m_b=values["observed"], x1=data.sne.x1, c=data.sne.c)

    def coords(self, data: CorrelatedSupernovae) -> dict[str, list]:
        """Return the labels of the dimensions."""
        labels: dict[str, list] = {"supernova": list(data.name)}
        return labels | ({"survey": list(data.sne.survey_counts)} if self.scatter == "survey" else {})

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return f"Type Ia supernovae with correlated errors, {expansion.named(self.cosmology).description}"

    def dense(self) -> "CorrelatedSupernova":
        """Return the same model without the table, as used for predictions and simulations."""
        return replace(self, tabulate=False)
