"""Every model runs with NumPyro's validation on: its distributions are given what they say they take."""

import dataclasses

import jax
import numpy as np
import numpyro
import pytest
import stored_fits
from models.test_correlated_supernova import some_of_jla
from models.test_rates import pumps
from numpyro import handlers
from numpyro.infer.util import initialize_model, log_density

from hbm_jax.data import BurstSpectra, BurstSpectraPopulation
from hbm_jax.models import CorrelatedSupernova, GolenetskiiCounts, Rates, Supernova

CASES = {
    **{name: {} for name in ("afterglow", "eight_schools", "hubble_diagram", "normal_vectors", "regression")},
    **{name: {} for name in ("golenetskii", "spectral_fit")},
    "supernova, masses with errors": {"mass_error": True},
    "supernova, selection": {"selection": "common", "outliers": True, "drift": True},
    "supernova, dust": {"stretch": "two", "colour": "dust", "host_beta": True},
    "supernova, broken law": {"colour": "broken", "survey_scatter": True},
    "supernova, skewed": {"stretch": "skewed", "step_width": 0.1, "lensing": 0.05, "sigma_v": 200.0},
    "supernova, hosts": {
        "scatter": "shared",
        "host_populations": True,
        "population_shapes": True,
        "step_evolution": True,
    },
    "supernova, correlated scatter": {"scatter": "correlated", "cosmology": "nodes(0.1, 0.4, 0.8)"},
    "supernova, redshifts": {
        "colour": "skewed",
        "velocity": "redshift",
        "sigma_v": 250.0,
        "redshift_prior": "volume",
        "selection": "survey",
    },
    "supernova, centred": {"latents": "centred", "cosmology": "w0wacdm"},
    "supernova, sampled": {"latents": "sampled", "cosmology": "olcdm"},
    "supernova, noncentred": {"latents": "noncentred", "cosmology": "binned"},
    "relation, correlated": {"correlated": True},
    "relation, outliers": {"pooling": "complete", "outliers": True, "num_components": 2},
    "relation, Student's t": {"pooling": "complete", "student_t": True},
    "relation, sampled": {"latents": "sampled"},
    "golenetskii, wcdm": {"cosmology": "wcdm"},
}


OTHERS = {
    "rates": lambda: (Rates(family="poisson"), (pumps(),)),
    "supernovae with correlated errors": lambda: (CorrelatedSupernova(), some_of_jla(20)[:1]),
    "bursts as counts": lambda: (GolenetskiiCounts(), (bursts(),)),
}


def bursts():
    population = BurstSpectraPopulation(num_intervals=(3, 2), detectors={"n0": "nai"})
    return BurstSpectra.of(population.draw(2, seed=3).bursts)


def made(name):
    """A program and its arguments."""
    if name in OTHERS:
        return OTHERS[name]()
    model, args, _ = getattr(stored_fits, name.split(",")[0])()
    return dataclasses.replace(model, **CASES[name]), args


@pytest.mark.long
@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_models_run_with_validation_on(name):
    program, args = made(name)
    with numpyro.validation_enabled():
        trace = handlers.trace(handlers.seed(program, 1)).get_trace(*args)
        values = {n: s["value"] for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
        checked = float(log_density(program, args, {}, values)[0])
        found = initialize_model(jax.random.key(0), program, model_args=args)
    assert np.isfinite(found.potential_fn(found.param_info.z))
    unchecked = float(jax.jit(lambda values: log_density(program, args, {}, values)[0])(values))
    assert np.isfinite(checked)
    assert checked == pytest.approx(unchecked, rel=1e-9)


def test_every_option_of_supernovae_is_validated():
    on = {name for case, options in CASES.items() if case.startswith("supernova") for name in options}
    # These need data of their own: test_supernova_options, test_supernova_repeats, test_supernova_calibrators.
    others = {"priors", "step_mass", "mass_step", "offsets", "observations", "calibrated"}
    assert on | others == {field.name for field in dataclasses.fields(Supernova)}


@pytest.mark.long
def test_numpyro_initialises_a_model_with_hosts_of_certain_mass():
    sne = stored_fits.supernova()[1]
    found = initialize_model(jax.random.key(0), Supernova(mass_error=True), model_args=sne)
    assert np.isfinite(found.potential_fn(found.param_info.z))
