"""Supernova cosmology from peak magnitudes with a dense covariance that depends on alpha and beta.

    m_b = M0 + mu(z; cosmology) - alpha x1 + beta c + delta_M [host mass > 1e10 Msun] + N(0, C(alpha, beta)),

where x1 and c are the observed values and C is defined in `hbm_jax.data.CorrelatedSupernovae`. This is the likelihood
of SNLS3 (Conley et al. 2011, ApJS 192, 1) and JLA (Betoule et al. 2014, A&A 568, A22), normalised.
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

from hbm_jax.cosmology import RedshiftMatrix, breaks_of
from hbm_jax.data import CorrelatedSupernovae, DataError
from hbm_jax.distributions.normal.block_normal import BlockNormal
from hbm_jax.models import expansion
from hbm_jax.models.base import configuration, simulated
from hbm_jax.models.priors import Prior, complete_priors, sample_prior
from hbm_jax.models.supernovae.correlated_table import coefficients, table_of
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy
from hbm_jax.models.supernovae.host import massive_hosts
from hbm_jax.names import choose

SCATTERS = ("published", "common", "survey")
DEFAULT_PRIORS: dict[str, Prior] = {
    "M0": dist.Normal(-19.3, 1.0),
    "alpha": dist.Normal(0.0, 2.0),
    "beta": dist.Normal(0.0, 5.0),
    "delta_M": dist.Normal(0.0, 0.2),
    "sigma_int": dist.HalfNormal(0.3),
}
UNITS = {"H0": "km/s/Mpc", "M0": "mag", "delta_M": "mag", "sigma_int": "mag"}


@dataclass(frozen=True, kw_only=True)
class CorrelatedSupernova:
    """Model of supernovae with a covariance that depends on alpha and beta; a call with data is a NumPyro program.

    Parameters
    ----------
    cosmology : str or Expansion
        Expansion history, as for `hbm_jax.models.Supernova`.
    scatter : str
        Intrinsic scatter: ``"published"`` takes that of the data (``variance_coherent``); ``"common"`` and ``"survey"``
        replace it by a parameter sigma_int, the same for all supernovae or one for each survey.
    mass_step : bool
        Whether the magnitudes of supernovae in hosts above 1e10 solar masses are offset by delta_M.
    tabulate : bool
        Whether the likelihood is interpolated in a precomputed table of alpha and beta. This needs the published
        scatter, a named cosmology without bins, and at least 200 supernovae. The log density agrees with the
        factorisation to 1e-8, and a step is a hundred times as fast. Alpha and beta are confined to the table, which
        contains every point where the likelihood exceeds exp(-32) of its maximum.
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

    cosmology: str | expansion.Expansion = field(default="lcdm", metadata={"help": expansion.HELP})
    scatter: str = field(default="published", metadata={"help": f"intrinsic scatter: {', '.join(SCATTERS)}"})
    mass_step: bool = field(default=True, metadata={"help": "whether massive hosts have a magnitude offset"})
    tabulate: bool = field(default=True, metadata={"help": "whether the likelihood is interpolated in a table"})
    priors: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self):
        expansion.named(self.cosmology)  # raises for unknown names
        choose("intrinsic scatter", self.scatter, SCATTERS)
        object.__setattr__(self, "priors", dict(self.priors))
        self.all_priors  # noqa: B018 - raises for unknown names

    @property
    def all_priors(self) -> dict[str, Prior]:
        """Every parameter with its prior; a number fixes a parameter."""
        relation = dict(DEFAULT_PRIORS)
        if not self.mass_step:
            del relation["delta_M"]
        if self.scatter == "published":
            del relation["sigma_int"]
        defaults = expansion.default_priors(self.cosmology) | relation
        return complete_priors(defaults, self.priors, f"CorrelatedSupernova(cosmology={self.cosmology!r})")

    def __call__(self, data: CorrelatedSupernovae, observed: bool = True):
        """Run the NumPyro program.

        Parameters
        ----------
        data : CorrelatedSupernovae
            The sample. With ``observed=False`` m_b is drawn, and everything else is the design.
        observed : bool
            Whether to condition on the observed magnitudes.
        """
        if not isinstance(data, CorrelatedSupernovae):
            raise DataError(
                f"CorrelatedSupernova: expected CorrelatedSupernovae; found {type(data).__name__}. Read them with "
                "hbm_jax.data.read_correlated_supernovae."
            )
        priors, sne = self.all_priors, data.sne
        massive: Any = massive_hosts(sne, 10.0, 0.0, False) if self.mass_step else np.zeros(len(data))
        concrete = not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(data))
        table = None
        named = self.cosmology in expansion.FREE
        if self.tabulate and named and self.scatter == "published" and observed and concrete:
            table = table_of(data, massive, self._diagonal(data, None))
        cosmology = expansion.sample_cosmology(self.cosmology, priors, supernova_degeneracy)
        p: dict[str, Any] = {"delta_M": 0.0}
        for name in DEFAULT_PRIORS:
            if name in priors:
                p[name] = self._sample(name, priors[name], data, table)
        if table is not None:
            density = table.log_density(p["alpha"], p["beta"], p["M0"], p["delta_M"], cosmology)
            numpyro.factor("observed", jnp.where(jnp.isfinite(density), density, -jnp.inf))
            return
        modulus = RedshiftMatrix(sne.z_cmb, sne.z_hel, breaks=breaks_of(cosmology)).distmod(cosmology)
        if observed:
            finite = jnp.all(jnp.isfinite(modulus))
            numpyro.factor("_big_bang", jnp.where(finite, 0.0, -jnp.inf))
            modulus = jnp.where(finite, modulus, 0.0)
        loc = modulus + p["M0"] + p["delta_M"] * massive - p["alpha"] * sne.x1 + p["beta"] * sne.c
        kappa = coefficients(jnp.asarray(p["alpha"]), jnp.asarray(p["beta"]))
        normal = BlockNormal(loc, self._diagonal(data, p.get("sigma_int")), kappa, data.total_blocks)
        numpyro.sample("observed", normal, obs=sne.m_b if observed else None)

    def _sample(self, name, prior, data, table):
        """Sample a parameter of the relation; return a number, or (N,) where it differs between surveys."""
        if name == "sigma_int" and self.scatter == "survey" and isinstance(prior, dist.Distribution):
            surveys = list(data.sne.survey_counts)
            with numpyro.plate("survey", len(surveys)):
                per_survey = jnp.asarray(numpyro.sample(name, prior))
            return per_survey[np.array([surveys.index(survey) for survey in data.survey])]
        if table is not None and name in ("alpha", "beta") and isinstance(prior, dist.Distribution):
            # A uniform site keeps the value inside the table; the factor restores the density of the prior.
            low, high = getattr(table, name)
            value = jnp.asarray(numpyro.sample(name, dist.Uniform(low, high)))
            numpyro.factor(f"_{name}_prior", prior.log_prob(value) + np.log(high - low))
            return value
        return sample_prior(name, prior)

    def _diagonal(self, data, sigma_int):
        """Return the variances of lensing, peculiar velocity and intrinsic scatter, (N,)."""
        sne = data.sne
        scatter = sne.variance_coherent if sigma_int is None else sigma_int**2
        return sne.variance_lensing + sne.variance_velocity + scatter

    def simulate(self, key, data: CorrelatedSupernovae, parameters: Mapping[str, float] | None = None):
        """Draw magnitudes with the design of ``data``; return the simulated sample and the true parameters."""
        observed, truth = simulated(self, key, data, parameters)
        sne = data.sne
        return data.replace_observations(m_b=observed["observed"], x1=sne.x1, c=sne.c), truth

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimensions of the data site."""
        return {"observed": ["supernova"]}

    def coords(self, data: CorrelatedSupernovae) -> dict[str, list]:
        """Return the labels of the dimensions."""
        labels: dict[str, list] = {"supernova": list(data.name)}
        return labels | ({"survey": list(data.sne.survey_counts)} if self.scatter == "survey" else {})

    @property
    def units(self) -> dict[str, str]:
        """Units of the parameters, without the dimensionless ones."""
        return UNITS

    @property
    def description(self) -> str:
        """One-line description for reports."""
        return f"Type Ia supernovae with correlated errors, {expansion.named(self.cosmology).description}"

    def to_config(self) -> dict:
        """Return options as plain values and priors as text; ``CorrelatedSupernova(**config)`` is the same model."""
        return configuration(self)

    def dense(self) -> "CorrelatedSupernova":
        """Return the same model without the table, as used for predictions and simulations."""
        return dataclasses.replace(self, tabulate=False)
