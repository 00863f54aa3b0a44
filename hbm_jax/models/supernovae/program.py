"""NumPyro program of the supernova model, for bound data."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist

from hbm_jax.distributions import LinearGaussian, ObservedMixture
from hbm_jax.distributions.normal.common_offsets import OffsetGaussian
from hbm_jax.distributions.normal.offset_coordinates import OffsetPrior
from hbm_jax.distributions.normal.repeated_observations import RepeatedObservations
from hbm_jax.distributions.normal.repeated_offsets import RepeatedOffsetGaussian
from hbm_jax.distributions.selection import InjectedSelection
from hbm_jax.models import expansion
from hbm_jax.models.base import without_padding
from hbm_jax.models.priors import in_stated_parameters, sample_prior
from hbm_jax.models.selection import record_effective
from hbm_jax.models.supernovae.bound import BoundSupernovae
from hbm_jax.models.supernovae.degeneracy import supernova_degeneracy
from hbm_jax.models.supernovae.population import OBSERVABLES, marginal, populations, tripp


def run(model, bound: BoundSupernovae, observed: bool, recover: bool) -> None:
    """Run the program of `hbm_jax.models.Supernova`; see its ``program``."""
    cosmology = expansion.sample_cosmology(model.cosmology, model.all_priors, supernova_degeneracy)
    parameters = _sample_parameters(model, bound) | bound.columns
    modulus = bound.distances.distmod(cosmology) if bound.design is None else model.distmod(bound.design, cosmology)
    if observed:
        modulus = expansion.require_big_bang(modulus)
    modulus = bound.with_calibrators(modulus)
    if model.laws.drift is not None:
        parameters |= model.laws.drift.populations(parameters, bound.z_cmb)
    values = bound.observed if observed else None
    if bound.log_nodes is not None or not model.laws.gaussian:
        log_nodes = bound.log_node_weights(model.laws.redshifts, parameters, cosmology)
        _mixture(model, bound, parameters, modulus, log_nodes, values, recover)
    else:
        _gaussian(model, bound, parameters, modulus, values, recover)


def _gaussian(model, bound, parameters, modulus, values, recover) -> None:
    """Sample the observed values of Gaussian populations, with or without the latents."""
    magnitude = modulus + parameters["M0"]
    if model.laws.host is not None:
        parameters |= model.laws.host.relation(parameters, bound.massive, model.laws.colour.slopes)
        magnitude = magnitude + parameters["host_magnitude"]
    without_offsets = marginal(model.laws.scatter.scatter(parameters), parameters, magnitude, bound.noise)
    if values is not None and model.integrated:
        _integrate_offsets(bound, without_offsets, values, recover)
        return
    offset = _sample_calibration(bound, values, lambda: without_offsets.mean)
    with numpyro.plate("supernova", len(bound)), without_padding(bound.in_sample):
        if model.latents == "marginal":
            _sample_marginal(_with_offsets(bound, without_offsets, offset), values, recover)
            return
        truth = _latent_sites(model.latents == "noncentred", parameters, magnitude)
        shifted = truth if offset is None else truth + offset
        no_latents = {"loading": jnp.zeros((3, 0)), "offset": shifted}
        noise = LinearGaussian(jnp.zeros(0), jnp.zeros((0, 0)), bound.noise, **no_latents)
        numpyro.sample("observed", noise, obs=values)


def _sample_marginal(distribution, values, recover) -> None:
    """Sample the observed values of Gaussian populations with the latents integrated out."""
    values = numpyro.sample("observed", distribution, obs=values)
    if recover:
        _record_conditional(distribution, values)


def _with_offsets(bound, objects: LinearGaussian, offset) -> LinearGaussian | RepeatedObservations:
    """Return the distribution of the observed values for known calibration offsets, from that without offsets."""
    if bound.repeats is None:
        return objects.with_offset(offset)
    return RepeatedObservations(objects, bound.repeats, shift=offset)


def _record_conditional(distribution, values) -> None:
    """Draw the true values given the observed ones, and record them for every observation."""
    if isinstance(distribution, RepeatedObservations):
        latent = distribution.objects.conditional(distribution.mean(values)).sample(numpyro.prng_key())
        _record(latent[distribution.repeats.object_index])
    else:
        _record(numpyro.sample("_latent", distribution.conditional(values)))


def _integrate_offsets(bound, objects: LinearGaussian, values, recover) -> None:
    """Sample the observed values of Gaussian populations with the calibration offsets integrated out."""
    distribution: OffsetGaussian | RepeatedOffsetGaussian = OffsetGaussian(objects, bound.offsets)
    if bound.repeats is not None:
        distribution = RepeatedOffsetGaussian(objects, bound.repeats, bound.repeated_offsets)
    numpyro.sample("observed", distribution, obs=values)
    if not recover:
        return
    calibration = distribution.conditional_offsets(numpyro.prng_key(), values)
    with numpyro.plate("offset", len(calibration)):
        numpyro.deterministic("calibration", calibration)
    with numpyro.plate("supernova", len(bound)):
        shift = bound.offsets.shift(calibration, len(bound))
        _record_conditional(_with_offsets(bound, objects, shift), values)


def _mixture(model, bound, parameters, modulus, log_nodes, values, recover) -> None:
    """Sample the observed values from the mixture of `populations`."""
    laws = model.laws
    magnitude = parameters["M0"] + modulus.reshape(bound.num_objects, -1)
    selection, repeats = laws.selection.detection(parameters), bound.repeats
    if isinstance(selection, InjectedSelection):
        in_sample = np.ones(bound.num_objects, bool) if bound.in_sample is None else bound.in_sample
        selection = selection._replace(objects=jnp.asarray(in_sample))
    mixture = populations(laws, parameters, magnitude, log_nodes, bound.massive, bound.noise, bound.prob_ia)
    objects = mixture.observed
    offset = _sample_calibration(bound, values, lambda: objects.undetected_mean)
    distribution: ObservedMixture | RepeatedObservations
    if repeats is None:
        distribution = objects = objects.with_observation(offset=offset, selection=selection)
        record_effective(objects.found)
    else:
        distribution = RepeatedObservations(objects, repeats, shift=offset, selection=selection)
    with numpyro.plate("supernova", len(bound)), without_padding(bound.in_sample):
        values = numpyro.sample("observed", distribution, obs=values)
        if recover:
            means = distribution.mean(values) if isinstance(distribution, RepeatedObservations) else values
            _record(bound.rows(objects.conditional_sample(numpyro.prng_key(), means)[1]))
            probabilities = bound.rows(objects.probabilities(means))
            if laws.outliers is not None:
                numpyro.deterministic("outlier_probability", probabilities @ mixture.outlier)
            if laws.host is not None and laws.host.error:
                numpyro.deterministic("massive_probability", probabilities @ mixture.massive)


def _sample_parameters(model, bound: BoundSupernovae) -> dict[str, Any]:
    """Sample the parameters of the relation; return numbers, or (N,) where they differ between surveys."""
    values: dict[str, Any] = {}
    for name in model.relation_parameters:
        prior = model.all_priors[name]
        if name in model.by_survey and isinstance(prior, dist.Distribution):
            with numpyro.plate("survey", bound.num_surveys):
                values[name] = jnp.asarray(numpyro.sample(name, prior))[bound.survey]
        else:
            values[name] = sample_prior(name, prior)
    return values


def _sample_calibration(bound: BoundSupernovae, values, mean: Callable[[], Any]) -> jax.Array | None:
    """Sample calibration offsets; return the shift of the observed (x1, c, m_b), (N, 3), or None.

    They are sampled in coordinates whose centre follows the residuals of the observed values from their ``mean``
    (S, 3), unless values are drawn, or the parameters themselves are to be sampled.
    """
    if bound.offsets is None:
        return None
    plate = numpyro.plate("offset", np.shape(bound.offsets.basis)[0])
    if values is None or bound.coordinates is None or in_stated_parameters():
        with plate:
            calibration = jnp.asarray(numpyro.sample("calibration", dist.Normal(0.0, 1.0)))
    else:
        residual = values - bound.rows(mean())
        standard = numpyro.sample("_calibration", OffsetPrior(bound.coordinates, residual))
        with plate:
            calibration = numpyro.deterministic("calibration", bound.coordinates.offsets(standard, residual))
    return bound.offsets.shift(calibration, len(bound))


def _latent_sites(noncentred: bool, p: Mapping[str, Any], magnitude: Any) -> jax.Array:
    """Sample the true x1, c, m_b, centred or from standard normal deviates; return them stacked, (N, 3)."""

    def latent(name, loc, scale):
        """Sample one true value of every supernova, (N,)."""
        if not noncentred:
            return numpyro.sample(f"{name}_true", dist.Normal(loc, scale))
        standard = numpyro.sample(f"_{name}_standard", dist.Normal(0.0, 1.0))
        return numpyro.deterministic(f"{name}_true", loc + scale * standard)

    x1 = latent("x1", p["x1_mean"], p["x1_std"])
    c = latent("c", p["c_mean"], p["c_std"])
    m_b = latent("m_b", magnitude + tripp(p, x1, c), p["sigma_int"])
    return jnp.stack([x1, c, m_b], axis=-1)


def _record(latent: jax.Array) -> None:
    """Record the true x1, c, m_b, (..., 3), as deterministic sites."""
    for index, name in enumerate(OBSERVABLES):
        numpyro.deterministic(f"{name}_true", latent[..., index])
