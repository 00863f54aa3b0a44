"""Bursts that are missing as a whole: density against integrals, draws against rejection, and what is refused."""

import jax
import numpy as np
import pytest
from numpyro import distributions as dist
from numpyro.infer.util import log_density
from scipy import stats

import hbm_jax as hbm
from hbm_jax.cosmology import Cosmology
from hbm_jax.data import BurstPopulation, Bursts, DataError
from hbm_jax.distributions.detected import Detected
from hbm_jax.inference.criticism.pointwise import log_prob_of_each
from hbm_jax.models import Golenetskii
from hbm_jax.models.bursts.detection import BurstDetection, LinesOfBursts
from hbm_jax.spectra.model.energetics import log10_sphere_area

TRUE = {
    "gamma_mean": 1.4, "gamma_std": 0.25, "log10_N_mean": 52.2, "log10_N_std": 0.5, "log10_E_peak_mean": 2.6,
    "log10_E_peak_std": 0.3, "log10_E_peak_scatter": 0.25, "intrinsic_scatter": 0.15,
}  # fmt: skip
LIMITS = np.array([-6.3, -5.9, -5.6])


@pytest.fixture(scope="module")
def bursts():
    rows = {
        "burst": ["a", "a", "b", "b", "b", "c"], "z": [1.3, 1.3, 0.5, 0.5, 0.5, 2.0],
        "log10_E_peak": [2.4, 2.0, 2.5, 2.2, 2.7, 2.3], "log10_flux": [-5.2, -6.9, -5.1, -5.6, -6.2, -5.0],
        "sigma_log10_E_peak": [0.1, 0.15, 0.08, 0.1, 0.12, 0.1], "sigma_log10_flux": [0.1, 0.12, 0.05, 0.2, 0.1, 0.3],
        "log10_peak_flux_limit": LIMITS[[0, 0, 1, 1, 1, 2]],
    }  # fmt: skip
    return Bursts.from_columns(rows)


def log_detected_fraction(p, data, limits, width=0.0):
    """Log of the detected fraction of bursts, by a fine sum over slope and luminosity, for each burst."""
    away = np.asarray(jax.jit(log10_sphere_area)(np.asarray(data.z), Cosmology.flat(H0=70.0, Om0=0.3)))
    u = np.linspace(-8.0, 8.0, 321)
    weights = stats.norm.pdf(u) * (u[1] - u[0])
    r, total = p.get("correlation", 0.0), []
    for i in range(len(data)):
        error = data.errors[i][data.used[i], 2]
        detected = 0.0
        for deviate, weight in zip(u[::5], weights[::5] * 5.0, strict=True):
            gamma = p["gamma_mean"] + p["gamma_std"] * deviate
            x = p["log10_E_peak_mean"] - 2.0
            mean = p["log10_N_mean"] + r * p["log10_N_std"] * deviate + gamma * x - away[i]
            spread = np.hypot(gamma * p["log10_E_peak_std"], p["log10_N_std"] * np.sqrt(1.0 - r**2))
            sd = np.sqrt((gamma * p["log10_E_peak_scatter"]) ** 2 + p["intrinsic_scatter"] ** 2 + error + width**2)
            z = (limits[i] - mean - spread * u)[:, None] / sd
            detected += weight * np.sum(weights * -np.expm1(stats.norm.logcdf(z).sum(axis=1)))
        total.append(np.log(detected))
    return np.array(total)


CASES = {
    "log10_peak_flux > log10_peak_flux_limit": (LIMITS, 0.0),
    "log10_peak_flux > -5.8 +- 0.3": (np.full(3, -5.8), 0.3),
}


@pytest.mark.parametrize("text", [pytest.param(text, marks=pytest.mark.long if "+-" in text else ()) for text in CASES])
def test_the_density_is_that_of_detected_bursts(bursts, text):
    """To 1e-5, and its gradient to 1e-4, for slopes and normalisations that are correlated."""
    limits, width = CASES[text]
    latent, free = {"_gamma": np.array([0.3, -0.5, 1.1])}, TRUE | {"correlation": 0.4}
    correlated = {"correlated": True}

    def densities(model):
        bound = model.bind(bursts)
        fixed = {name: value for name, value in model.all_priors.items() if name not in free}

        def total(p):
            sites = {name: site for name, site in (p | latent).items() if name not in fixed}
            return log_density(model, (bound,), {}, sites)[0]

        return jax.jit(jax.value_and_grad(total))

    with jax.enable_x64(True):
        values = {name: np.float64(value) for name, value in free.items()}
        found, gradient = densities(Golenetskii(selection=text, **correlated))(values)
        whole, whole_gradient = densities(Golenetskii(**correlated))(values)
    efficiency = 0.0
    if width:
        missed = stats.norm.logcdf((limits[:, None] - bursts.log10_flux) / width)
        efficiency = np.log(-np.expm1(np.where(bursts.used, missed, 0.0).sum(axis=1))).sum()
    expected = efficiency - log_detected_fraction(free, bursts, limits, width).sum()
    assert float(found - whole) == pytest.approx(expected, abs=1e-5)
    for name in ("gamma_mean", "gamma_std", "log10_N_mean", "log10_E_peak_std", "intrinsic_scatter", "correlation"):

        def slope(step, name=name):
            above, below = (
                log_detected_fraction(free | {name: free[name] + h}, bursts, limits, width).sum() for h in (step, -step)
            )
            return (above - below) / (2.0 * step)

        expected = -(4.0 * slope(5e-4) - slope(1e-3)) / 3.0
        assert float(gradient[name] - whole_gradient[name]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("scatter", "tolerance"), [(0.28, 1e-6), (0.15, 1e-4), (0.05, 1e-3)])
def test_shares_of_bursts_of_many_intervals_with_little_scatter(scatter, tolerance):
    """In units of the spread of the luminosities, against fine sums."""
    zeros, u = np.zeros((1, 20)), np.linspace(-9.0, 9.0, 20_001)
    lines = LinesOfBursts(0.0, 1.0, lambda slope: (0.0, 1.0 + 0.0 * slope), 0.0, 0.0, 0.0, scatter, zeros, zeros)
    weights = stats.norm.pdf(u) / stats.norm.pdf(u).sum()
    for limit in (-1.0, 0.5, 2.5):
        detection = BurstDetection(np.array([[limit]]), None, zeros == 0.0)
        with jax.enable_x64(True):
            found = float(jax.jit(lambda slope, d=detection: d.log_detected(slope, lines))(np.ones(1))[0])
        exact = np.log(np.sum(weights * -np.expm1(20 * stats.norm.logcdf((limit - u) / scatter))))
        assert found == pytest.approx(exact, abs=tolerance)


def test_pointwise_likelihoods_are_refused_where_they_need_the_latents():
    detected = Detected(dist.Normal(np.zeros(2), 1.0), lambda x: x > 0.0)
    with pytest.raises(ValueError, match="observed: expected a likelihood that is normalised for given latents"):
        log_prob_of_each({"fn": detected, "name": "observed", "value": np.ones(2), "scale": None})


def test_far_limits_have_finite_densities_and_gradients(bursts):
    for limit in (-40.0, 3.0):
        model = Golenetskii(selection=f"log10_peak_flux > {limit} +- 0.1")

        def total(p, model=model):
            return log_density(model, (model.bind(bursts),), {}, p | {"_gamma": np.zeros(3)})[0]

        with jax.enable_x64(True):
            found = jax.jit(jax.value_and_grad(total))({name: np.float64(value) for name, value in TRUE.items()})
            assert all(np.isfinite(value).all() for value in jax.tree.leaves(found)), limit


@pytest.mark.long
def test_simulated_bursts_are_the_detected_ones(monte_carlo):
    num, limit = 1500, -5.1
    population = BurstPopulation(redshift=[1.0, 2.0, 2.0], num_intervals=3, sigma_log10_flux=(0.1, 0.1))
    design = population.draw(num, seed=2).data
    selected, truth = Golenetskii(selection=f"log10_peak_flux > {limit}").simulate(jax.random.key(3), design, TRUE)
    everything, all_truth = Golenetskii().simulate(jax.random.key(4), design, TRUE)
    assert (selected.log10_flux.max(axis=1) >= limit).all()
    kept = everything.log10_flux.max(axis=1) >= limit
    assert 0.1 < kept.mean() < 0.8
    half = np.asarray(design.z) == 1.0
    for name, ours, others in (
        ("gamma", truth["gamma"], all_truth["gamma"]),
        ("brightest", selected.log10_flux.max(axis=1), everything.log10_flux.max(axis=1)),
        ("faintest", selected.log10_flux.min(axis=1), everything.log10_flux.min(axis=1)),
        ("peak energy", selected.log10_E_peak.mean(axis=1), everything.log10_E_peak.mean(axis=1)),
    ):
        for z, chosen in (("1", half), ("2", ~half)):
            result = stats.ks_2samp(ours[chosen], others[chosen & kept])
            monte_carlo.p_value(result.pvalue, name=f"{name} at z = {z}")


def test_limits_of_bursts_are_read_and_kept(bursts, tmp_path):
    bursts.to_table().write(tmp_path / "bursts.ecsv")
    for other in (hbm.data.read_bursts(tmp_path / "bursts.ecsv"), Bursts.from_dict(bursts.to_dict())):
        np.testing.assert_array_equal(other.log10_peak_flux_limit, LIMITS)
    without = {name: value for name, value in bursts.to_dict().items() if name != "log10_peak_flux_limit"}
    assert not np.isfinite(Bursts.from_dict(without).log10_peak_flux_limit).any()
    assert "log10_peak_flux_limit" not in Bursts.from_dict(without).to_dict()
    np.testing.assert_array_equal(bursts.subset([2, 0]).log10_peak_flux_limit, LIMITS[[2, 0]])


def test_bursts_of_one_interval_have_the_density_of_selected_intervals(bursts):
    first = bursts.subset([2])
    one = Bursts.from_columns({key: value[:1] for key, value in first.to_table().items() if key != "covariance"})
    both = (Golenetskii(selection=f"{name} > -5.6 +- 0.2") for name in ("log10_flux", "log10_peak_flux"))
    sites = {name: TRUE[name] for name in ("log10_E_peak_mean", "log10_E_peak_std", "intrinsic_scatter")}
    sites |= {"gamma": 1.4, "log10_N": 52.2}
    found = [float(log_density(model, (one,), {}, sites)[0]) for model in both]
    assert found[0] == pytest.approx(found[1], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selection": "log10_peak_flux > -5.15"}, r"no burst whose fluxes are all below.*found 1, the first in a"),
        ({"selection": "log10_peak_flux > -6", "pooling": "complete"}, "expected pooling='partial'"),
        ({"selection": "log10_peak_flux > log10_flux_limit"}, "expected bursts with a log10_peak_flux_limit"),
    ],
)
def test_data_that_do_not_fit_are_refused(bursts, options, words):
    with pytest.raises(DataError, match=words):
        Golenetskii(**options).bind(bursts)


def test_a_burst_below_its_own_limit_is_refused():
    rows = {
        "burst": ["a", "a"], "z": [1.3, 1.3], "log10_E_peak": [2.4, 2.0], "log10_flux": [-6.2, -6.9],
        "sigma_log10_E_peak": [0.1, 0.15], "sigma_log10_flux": [0.1, 0.12], "log10_peak_flux_limit": [-6.0, -6.0],
    }  # fmt: skip
    with pytest.raises(DataError, match="a burst with a flux above its log10_peak_flux_limit"):
        Bursts.from_columns(rows)
