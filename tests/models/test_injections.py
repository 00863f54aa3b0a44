"""Selection by injections: the detected fraction, draws, the effective number, and what is refused."""

import jax
import numpy as np
import pytest
from monte_carlo import seed
from numpyro.infer.util import log_density
from scipy import stats
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data.linear.points_in_groups import PointsInGroups, read_relation
from hbm_jax.models import Relation
from hbm_jax.validation import DataError, OptionError

ERROR_X, ERROR_Y, CUT = 0.5, 0.3, 0.4
TRUTH = {"alpha": 1.5, "beta": 0.3, "intrinsic_scatter": 0.5, "x_mean": 0.3, "x_std": 0.8}
OUTLIERS = {"outlier_fraction": 0.1, "outlier_scatter": 1.0}


def injections(num, measured=True, start=1):
    """Points of a broad distribution, found where the measured, or the true, x is above a limit."""
    rng = np.random.default_rng(start)
    x, y = rng.normal(0.6, 1.2, num), rng.normal(1.0, 2.5, num)
    density = stats.norm.pdf(x, 0.6, 1.2) * stats.norm.pdf(y, 1.0, 2.5)
    found = x + measured * rng.normal(0.0, ERROR_X, num) > CUT
    return {"x": x, "y": y, "density": density, "found": found.astype(int)}


def points(num, start=2, measured=True):
    rng = np.random.default_rng(start)
    x = rng.normal(TRUTH["x_mean"], TRUTH["x_std"], 20 * num)
    y = TRUTH["alpha"] * x + TRUTH["beta"] + rng.normal(0, np.hypot(TRUTH["intrinsic_scatter"], ERROR_Y), 20 * num)
    shown = x + rng.normal(0, ERROR_X, 20 * num)
    kept = np.flatnonzero((shown if measured else x) > CUT)[:num]
    columns = {"x": shown[kept], "y": y[kept], "sigma_x": np.full(num, ERROR_X), "sigma_y": np.full(num, ERROR_Y)}
    return PointsInGroups.from_columns(columns)


def share(table, p):
    """The detected fraction of a population and its effective number, of injections one by one."""
    weights = np.zeros(len(table["x"]))
    outliers = p.get("outlier_fraction", 0.0)
    for weight, extra in ((1.0 - outliers, 0.0), (outliers, p.get("outlier_scatter", 0.0))):
        spread = np.hypot(p["intrinsic_scatter"], extra)
        true = stats.norm.pdf(table["x"], p["x_mean"], p["x_std"])
        weights += weight * true * stats.norm.pdf(table["y"], p["alpha"] * table["x"] + p["beta"], spread)
    weights *= table["found"] / table["density"]
    variance = np.var(weights) / len(weights)
    return weights.mean(), weights.mean() ** 2 / variance


def observed(model, data, values):
    """The log density of every point."""

    @jax.jit
    def likelihood(values):
        site = log_density(model, (model.bind(data),), {}, values)[1]["observed"]
        return site["fn"].log_prob(site["value"])[0]

    with jax.enable_x64(True):
        return np.asarray(likelihood({name: np.float64(value) for name, value in values.items()}))


@pytest.mark.parametrize("more", [{}, OUTLIERS], ids=["normal", "outliers"])
def test_the_density_is_divided_by_the_share_of_injections(more):
    table, truth = injections(4000), TRUTH | more
    data = points(6).with_injections(table)
    options = {"pooling": "complete", "pivot": 0.0, "outliers": bool(more)}
    without = observed(Relation(**options), data, truth)
    model = Relation(selection="injections", **options)
    expected, effective = share(table, truth)
    np.testing.assert_allclose(observed(model, data, truth), without - np.log(expected), rtol=1e-12)
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bound(data))(truth).values["effective_injections"]
    assert float(found) == pytest.approx(effective, rel=1e-10)


def test_populations_away_from_all_injections_have_the_likelihood_without_selection():
    """Their share would be close to 0, which would make their likelihood unlimited."""
    data = points(6).with_injections(injections(300))
    options = {"pooling": "complete", "pivot": 0.0}
    far = TRUTH | {"x_mean": -4.0, "x_std": 0.3, "intrinsic_scatter": 2.0}
    estimate, effective = share(injections(300), far)
    assert effective < 6.0
    assert 0.0 < estimate < 1e-6
    with_injections = observed(Relation(selection="injections", **options), data, far)
    np.testing.assert_allclose(with_injections, observed(Relation(**options), data, far), rtol=1e-12)


def test_the_share_is_that_of_the_closed_form(monte_carlo):
    """Within the error that the effective number tells, for a selection of measured x that has a closed form."""
    data = points(2 + 1).with_injections(injections(100_000, start=seed(3)))
    options = {"pooling": "complete", "pivot": 0.0}
    exact = observed(Relation(selection=f"x > {CUT}", **options), data, TRUTH)
    difference = (observed(Relation(selection="injections", **options), data, TRUTH) - exact)[0]
    _, effective = share(injections(100_000, start=seed(3)), TRUTH)
    assert 1e3 < effective < 1e5
    monte_carlo.p_value(2.0 * stats.norm.sf(abs(difference) * np.sqrt(effective)))


def test_draws_are_detected_points(monte_carlo):
    """Of detection by true x, against plain rejection."""
    data = points(1500).with_injections(injections(60_000, measured=False, start=seed(4)))
    model = Relation(pooling="complete", pivot=0.0, selection="injections")
    drawn, _ = model.simulate(jax.random.key(seed(5)), data, TRUTH)
    expected = points(1500, start=seed(6), measured=False).values[0]
    for column, values in enumerate(expected.T):
        monte_carlo.p_value(stats.ks_2samp(drawn.values[0][:, column], values).pvalue, name="xy"[column])


def test_the_effective_number_is_judged():
    data, model = points(20).with_injections(injections(200)), Relation(pooling="complete", selection="injections")
    many = {"effective_injections": _Draws([160.0, 90.0])}
    (sentence,) = model.cautions_of_draws(data, many)
    num = int(np.sum(injections(200)["found"]))
    assert f"{num} found injections; their effective number is 90 or more, 4.5 times the 20 objects" in sentence
    assert "the Monte Carlo error of the log likelihood is up to 2.1; 4 times are enough" in sentence
    assert "too few: 4 times are needed" in model.cautions_of_draws(data, {"effective_injections": _Draws([30.0])})[0]
    assert "only selection='injections' uses" in Relation(pooling="complete").cautions(data)[0]


class _Draws:
    def __init__(self, values):
        self.values = values

    def to_numpy(self):
        return np.array([self.values])


@pytest.mark.long
def test_a_fit_gives_the_line_back(monte_carlo):
    data = points(80, start=seed(7)).with_injections(injections(4000, start=seed(8)))
    model = Relation(pooling="complete", selection="injections", pivot=0.0)
    fit = hbm.sample(model, data, seed=1, progress=False, num_warmup=300, num_samples=300, num_chains=2)
    assert any("found injections" in note for note in fit.verdict.notes)
    alpha = fit.posterior["alpha"].to_numpy()
    assert abs(alpha.mean() - TRUTH["alpha"]) < 4.0 * alpha.std()


def test_injections_come_back_and_are_read(tmp_path):
    table = injections(50)
    data = points(4).with_injections(table)
    again = PointsInGroups.from_dict(data.to_dict())
    np.testing.assert_array_equal(again.injections, data.injections)
    assert float(again.num_injections) == 50.0
    assert not len(PointsInGroups.from_dict(points(4).to_dict()).injections)
    assert len(data.subset([0]).injections) == sum(table["found"])
    rows = zip(*table.values(), strict=True)
    text = "\n".join([",".join(table), *(",".join(map(repr, map(float, row))) for row in rows)])
    (tmp_path / "injections.csv").write_text(text)
    columns = {"x": [1.0, 2.0, 4.0], "y": [1.0, 2.0, 3.0]}
    read = read_relation(columns, injections=str(tmp_path / "injections.csv"))
    np.testing.assert_allclose(read.injections, data.injections, rtol=1e-14)


def test_what_does_not_fit_is_refused():
    table = injections(20)
    with pytest.raises(DataError, match="expects injections; found none"):
        Relation(pooling="complete", selection="injections").bind(points(4))
    with pytest.raises(DataError, match="column 'density' is missing"):
        points(4).with_injections({name: table[name] for name in ("x", "y", "found")})
    with pytest.raises(DataError, match=r"density, row 0 .*positive"):
        points(4).with_injections(table | {"density": np.zeros(20)})
    with pytest.raises(DataError, match="expected injections that were found; found none of 20"):
        points(4).with_injections(table | {"found": np.zeros(20, int)})
    with pytest.raises(DataError, match=r"found, row 0 .*expected 1 or 0"):
        points(4).with_injections(table | {"found": ["maybe"] * 20})
    for name, value in {"latents": "sampled", "evolution": "ln E(z)", "scatter": False}.items():
        with pytest.raises(OptionError, match=f"selection='injections' expects {name}="):
            Relation(selection="injections", **{name: value})
    columns = {"x": [1.0, 2.0, 4.0], "y": [1.0, 2.0, 3.0], "group": ["a", "b", "a"]}
    with pytest.raises(DataError, match="expects one line for all points"):
        Relation(selection="injections").bind(PointsInGroups.from_columns(columns).with_injections(table))
