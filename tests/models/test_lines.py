"""Emission lines of any width, in fits, in bins and in fluxes; what verdicts say of a fold that is not good enough."""

import dataclasses

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import sparse, stats

import hbm_jax
from hbm_jax.inference import maximum_likelihood
from hbm_jax.models import SpectralFit
from hbm_jax.models.fold_cautions import fold_cautions
from hbm_jax.spectra import Response, Spectrum, SpectrumStack, group, noticed, xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.model.absorbers import precise_cross_section
from hbm_jax.spectra.model.components import Absorption, Constant, GaussianLine, PowerLaw, photons
from hbm_jax.spectra.model.composition import split_terms

SPECTRUM = (PowerLaw(norm="amplitude") + GaussianLine("fe")) * Absorption()
VALUES = {"photon_index": 1.7, "log10_amplitude": -3.0, "fe_energy": 2.0003, "fe_log10_amplitude": -3.2, "nh": 1.5}


def observed(rmf, counts):
    """A spectrum of an idealised CCD from 0.5 to 8 keV, in groups of eight channels."""
    num = len(rmf.channels)
    spectrum = Spectrum(
        name="ccd", counts=counts, channels=rmf.channels, exposure=2e4, backscal=np.ones(num), areascal=np.ones(num),
        quality=np.zeros(num, int), grouping=np.zeros(num, int), response=Response.of(rmf, xrt_like_arf(rmf)),
    )  # fmt: skip
    mask = noticed(spectrum, (0.5, 8.0))
    return SpectrumStack.of([group(spectrum, "channels_per_group", 8, noticed=mask)], [mask])


@pytest.fixture(scope="module")
def stack():
    """With as many counts as there are channels."""
    rmf = xrt_like_rmf()
    return observed(rmf, np.ones(len(rmf.channels)))


@pytest.mark.long
def test_a_line_of_any_width_is_folded_with_all_its_photons(stack):
    model = SpectralFit(SPECTRUM)
    prepared = model.prepare(stack)
    assert model.cautions(prepared) == ()
    edges, response = stack.grouped_response(0)
    in_bins = jax.jit(photons(SPECTRUM, edges))  # as simulations have them
    cells = np.linspace(edges[:-1], edges[1:], 41, axis=1)
    energy, width = 0.5 * (cells[:, 1:] + cells[:, :-1]), np.diff(cells, axis=1)
    transmitted = np.exp(-1.5 * precise_cross_section(energy, "wilm"))
    power_law = (1e-3 * energy**-1.7 * transmitted * width).sum(axis=1)
    for sigma in (0.1, 1e-3, 1e-4):
        share = np.diff(stats.norm(2.0003, sigma).cdf(cells), axis=1)
        line = 10**-3.2 * (share * transmitted).sum(axis=1)
        assert line.sum() == pytest.approx(
            10**-3.2 * np.exp(-1.5 * precise_cross_section([2.0003], "wilm")[0]), rel=0.02
        )
        values = VALUES | {"fe_sigma": sigma}
        found = model.expected(prepared, values)[0]
        np.testing.assert_allclose(found, (power_law + line) @ response, rtol=1e-3)
        np.testing.assert_allclose(np.asarray(in_bins(values)) @ response, found, rtol=1e-3)
        alone = found - model.expected(prepared, values | {"fe_log10_amplitude": -30.0})[0]
        np.testing.assert_allclose(alone, line @ response, rtol=1e-5, atol=1e-5 * (line @ response).max())


def test_lines_alone_and_several_spectra(stack):
    two = dataclasses.replace(
        stack,
        name=("a", "b"),
        responses=stack.responses * 2,
        grouping=stack.grouping * 2,
        **{
            key: np.repeat(getattr(stack, key), 2, axis=0)
            for key in vars(stack)
            if key not in ("name", "responses", "grouping", "warnings")
        },
    )
    model = SpectralFit("gauss", own=["energy"], calibration=True)
    values = {"energy": [2.0, 6.4], "sigma": 1e-3, "log10_amplitude": -3.0, "calibration": [0.5]}
    expected = model.expected(two, values)
    edges, response = stack.grouped_response(0)
    for row, energy, factor in ((0, 2.0, 1.0), (1, 6.4, 0.5)):
        share = np.diff(stats.norm(energy, 1e-3).cdf(edges))
        np.testing.assert_allclose(expected[row], factor * 1e-3 * share @ response, rtol=1e-9, atol=1e-12)


def test_lines_are_taken_out_of_any_expression():
    line, other = GaussianLine("fe"), GaussianLine("si")
    light, mw, host, scale = PowerLaw(), Absorption("mw"), Absorption("host", z=1.0), Constant()
    assert split_terms(light * mw) == (light * mw, ())
    smooth, lines = split_terms((line + (light + other) * host) * mw * scale)
    assert set(smooth.parameters) == {"mw_nh", "factor", "photon_index", "log10_flux", "host_nh"}
    factors = {line.component: set(line.factor.parameters) for line in lines}
    assert factors == {line: {"mw_nh", "factor"}, other: {"mw_nh", "factor", "host_nh"}}
    assert split_terms(line * mw)[0] is None


@pytest.mark.long
def test_the_flux_of_an_absorbed_line_does_not_depend_on_its_width():
    values = VALUES | {"fe_sigma": np.array([1e-4, 1e-3, 5e-3])}
    line = GaussianLine("fe") * Absorption()
    photon, energy = (np.asarray(line.integral(values, 0.5, 8.0, power)) for power in (0, 1))
    exact = 10**-3.2 * np.exp(-1.5 * precise_cross_section([2.0003], "wilm")[0])
    np.testing.assert_allclose(photon, exact, rtol=2e-3)
    np.testing.assert_allclose(energy, 2.0003 * photon, rtol=1e-5)
    whole = np.asarray(SPECTRUM.integral(values, 0.5, 8.0))
    alone = np.asarray((PowerLaw(norm="amplitude") * Absorption()).integral(values, 0.5, 8.0))
    np.testing.assert_allclose(whole, alone + photon, rtol=1e-9)


def test_a_fold_that_is_not_good_enough_is_told(stack):
    model = SpectralFit("powerlaw", priors={"photon_index": 1.7})
    prepared = dataclasses.replace(model.prepare(stack), errors=np.array([1357.0]))
    assert model.cautions(stack) == ()
    found = maximum_likelihood(model, prepared, errors=None, num_starts=1)
    assert "fold of spectrum number 1 changes the log likelihood by up to 1.4e+03" in found.note
    assert fold_cautions([1e-4, 2e-3, 0.5], 1e-3, ("a", "b", "c"), "it")[0].startswith(
        "the fold of spectrum c changes it by up to 0.5 over trial parameters, above the tolerance of 0.001, one of 2 "
        "such spectra of 3"
    )
    assert "a changes it by an amount that cannot be measured" in fold_cautions([np.inf], 1.0, ("a",), "it")[0]


def test_the_error_of_a_fold_is_measured_beside_groups_without_response(stack):
    rmf = xrt_like_rmf()
    answers = (rmf.e_min < 1.0) | (rmf.e_min > 2.0)
    dead = dataclasses.replace(rmf, matrix=sparse.csr_matrix(rmf.matrix @ sparse.diags(answers.astype(float))))
    data = observed(dead, answers.astype(float))
    expected = data.grouped_response(0)[1].any(axis=0)
    assert 0 < expected.sum() < len(expected)
    model = SpectralFit("bbodyrad * tbabs")
    errors = model.prepare(data).errors, model.prepare(stack).errors
    assert 1e-8 < errors[0][0] < 1e-3
    assert 1e-8 < errors[1][0] < 1e-3
    # Nothing can be measured where no draw of the prior is seen.
    faint = SpectralFit("powerlaw * tbabs", priors={"nh": 1e6})
    assert "an amount that cannot be measured" in faint.cautions(stack)[0]


def test_cautions_of_a_program_are_in_the_verdict():
    class Program:
        def __call__(self, y):
            numpyro.sample("y", dist.Normal(numpyro.sample("mean", dist.Normal(0.0, 1.0)), 1.0), obs=y)

        def cautions(self, y):
            return (f"the datum {y} is rounded",)

    fit = hbm_jax.sample(Program(), 0.5, seed=1, num_chains=2, num_warmup=50, num_samples=50, progress=False)
    assert fit.verdict.notes[0] == "the datum 0.5 is rounded"
    assert "Note: the datum 0.5 is rounded." in str(fit.verdict)
