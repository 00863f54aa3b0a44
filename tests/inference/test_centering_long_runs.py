"""Long runs of programs in every form: the same posterior, and the chosen form mixes best."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from arviz_stats.base import array_stats
from numpyro import distributions as dist
from numpyro.infer.util import log_density
from test_centering import KEY, chosen, groups

import hbm_jax as hbm
from hbm_jax.inference.centering.location_scale import PartialNonCentring, ReparametrisedProgram, find_sites
from hbm_jax.inference.centering.pilot import centre


def pure(program, args, weight):
    """The same program with all its sites in one form."""
    shapes = find_sites(program, args, KEY)
    return ReparametrisedProgram(
        program, tuple(PartialNonCentring(n, np.full(s, weight), np.ones(s)) for n, s in shapes.items())
    )


def mixed_case():
    """Ten groups of one datum and three of a thousand, each given by its mean."""
    random = np.random.default_rng(1)
    error = 10.0 / np.sqrt([1] * 10 + [1000] * 3)
    return random.normal(random.normal(4.5, 3.5, size=13), error), error


@pytest.fixture(scope="session")
def schools(shared_data):
    data = json.loads(shared_data("hierarchical/posteriordb/eight_schools.json").read_text())
    return tuple(np.array(data[name], dtype=float) for name in ("y", "sigma"))


_FITS = {}


def fits(case, args=None):
    """Long runs of one case in the three forms, drawn once."""
    if case not in _FITS:
        args = mixed_case() if case == "mixed" else args
        forms = {
            "centred": groups,
            "non-centred": pure(groups, args, 0.0),
            "chosen": centre(groups, *args, seed=1).program,
        }
        options = {"seed": 5, "num_samples": 2500, "sampler": hbm.NUTS(target_accept_prob=0.97), "progress": False}
        _FITS[case] = {name: hbm.sample(form, *args, **options) for name, form in forms.items()}
    return _FITS[case]


def moments(fit):
    """Mean and its standard error of every element of every parameter, and of log tau, with the ESS."""
    found = {}
    draws = {name: fit.posterior[name].to_numpy() for name in ("mu", "tau", "theta")}
    draws["log_tau"] = np.log(draws["tau"])
    for name, values in draws.items():
        for index in np.ndindex(values.shape[2:]):
            x = values[(..., *index)]
            ess = float(array_stats.ess(x, chain_axis=0, draw_axis=1))
            found[f"{name}[{index[0] + 1}]" if index else name] = x.mean(), x.std() / math.sqrt(ess), ess
    return found


@pytest.mark.parametrize("form", ["centred", "non-centred", "chosen"])
@pytest.mark.slow
def test_eight_schools_in_every_form_against_posteriordb(form, schools, shared_data):
    path = shared_data("hierarchical/posteriordb/reference_summary.json")
    reference = json.loads(path.read_text())["eight_schools-eight_schools_noncentered"]["parameters"]
    found = moments(fits("schools", schools)[form])
    for name in ["mu", "tau", *(f"theta[{i}]" for i in range(1, 9))]:
        mean, error, ess = found[name]
        assert ess > (200 if form == "centred" else 2000), name
        assert abs(mean - reference[name]["mean"]) < 4 * math.hypot(error, reference[name]["mcse_mean"]), name


@pytest.mark.parametrize("form", ["centred", "non-centred"])
@pytest.mark.slow
def test_mixed_case_in_every_form(form):
    theirs, ours = moments(fits("mixed")[form]), moments(fits("mixed")["chosen"])
    assert len(ours) == 16
    for name, (mean, error, ess) in ours.items():
        assert ess > 2000, name
        assert theirs[name][2] > 400, name
        assert abs(mean - theirs[name][0]) < 4 * math.hypot(error, theirs[name][1]), name


@pytest.mark.slow
def test_chosen_form_mixes_best_where_few_and_many_data_meet():
    smallest = {name: min(ess for _, _, ess in moments(fit).values()) for name, fit in fits("mixed").items()}
    assert smallest["chosen"] > 1.5 * max(smallest["centred"], smallest["non-centred"]), smallest


@pytest.mark.slow
def test_eight_schools(schools):
    y, sigma = schools
    fixed = centre(groups, y, sigma, 6.0)
    np.testing.assert_allclose(chosen(fixed, "theta"), 36.0 / (36.0 + sigma**2), rtol=1e-9)
    # With tau free: the mean over its posterior, here that of a long run.
    found = centre(groups, y, sigma, num_pilots=400)
    tau = fits("schools", schools)["chosen"].posterior["tau"].to_numpy().ravel()[:, None]
    np.testing.assert_allclose(chosen(found, "theta"), (tau**2 / (tau**2 + sigma**2)).mean(0), rtol=0.25)
    np.testing.assert_allclose(found.table["prior_scale"], np.exp(np.log(tau).mean()), rtol=0.35)


@pytest.mark.slow
def test_the_unit_does_not_matter():
    y, error = np.array([1.0, 2.0, 0.5, 3.0]), np.array([0.1, 0.5, 1.0, 2.0])

    def program(y, error, unit):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0 * unit))
        with numpyro.plate("group", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 0.7 * unit))
            numpyro.sample("y", dist.Normal(theta, error), obs=y)

    metres, kilometres = (centre(program, y * unit, error * unit, unit) for unit in (1.0, 1e-3))
    np.testing.assert_allclose(chosen(metres, "theta"), chosen(kilometres, "theta"), rtol=1e-9)
    # And what is sampled does not depend on the location, in either unit: no curvature between the two.
    for centering, unit in ((metres, 1.0), (kilometres, 1e-3)):
        args = (y * unit, error * unit, unit)

        def density(both, centering=centering, args=args):
            return log_density(centering.program, args, {}, {"mu": both[0], "_theta_free": both[1:]})[0]

        hessian = jax.hessian(density)(jnp.full(5, unit))
        np.testing.assert_allclose(hessian[0, 1:] * unit**2, 0.0, atol=1e-9)


@pytest.mark.slow
def test_supernovae_are_more_centred_the_better_they_are_measured():
    sne = hbm.data.load_jla().subset(np.arange(0, 740, 25))
    found = centre(hbm.models.Supernova(latents="centred"), sne)
    error = np.sqrt(sne.covariance[:, 2, 2])
    c_true = found.table[found.table["site"] == "c_true"]
    assert np.corrcoef(np.argsort(np.argsort(error)), np.argsort(np.argsort(c_true["weight"])))[0, 1] < -0.8
    assert 0.04 < c_true["prior_scale"].iloc[0] < 0.15  # a colour scatter of 0.08
    assert 0.3 < c_true["weight"].min() <= c_true["weight"].max() < 1.0
