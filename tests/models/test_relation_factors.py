"""Powers of redshift that multiply x and y, and errors that the points of a group have in common."""

import jax
import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from monte_carlo import seed
from numpyro import handlers
from scipy import stats
from sites import compiled_sites

import hbm_jax as hbm
from hbm_jax.data.linear.points_in_groups import PointsInGroups, read_relation
from hbm_jax.models import Relation
from hbm_jax.validation import DataError, OptionError

Z = np.array([0.1, 0.8, 0.3, 0.5, 1.4])
COLUMNS = {
    "x": np.array([0.1, 0.9, -0.4, 1.3, 0.5]), "y": np.array([0.4, 2.0, -0.1, 2.9, 1.6]),
    "sigma_x": np.array([0.2, 0.3, 0.2, 0.1, 0.4]), "sigma_y": np.array([0.3, 0.1, 0.2, 0.2, 0.1]),
    "group": ["a", "a", "b", "b", "b"],
}  # fmt: skip
COMMON = {"a": 0.5, "b": 0.3}
WITH_COMMON = COLUMNS | {"common_error_y": [COMMON[name] for name in COLUMNS["group"]]}
PIVOT, ALPHA, BETA = 0.3, 1.4, 1.0
LINE = {"alpha": ALPHA, "beta": BETA}
COMPLETE = LINE | {"intrinsic_scatter": 0.3, "x_mean": 0.5, "x_std": 0.8}
SPREAD = 0.4
PARTIAL = {
    "alpha_mean": ALPHA, "alpha_std": 0.2, "beta_mean": BETA, "beta_std": SPREAD, "intrinsic_scatter": 0.3,
    "x_mean": 0.5, "x_std": 0.8,
}  # fmt: skip


def group_normal(rows, alpha, shift, variance):
    """The normal distribution of all measured values of a group, with a variance that its responses have in common."""
    num = len(rows)
    mean = np.zeros((num, 2))
    covariance = np.zeros((num, 2, num, 2))
    for position, row in enumerate(rows):
        mean[position] = 0.5, BETA + alpha * (0.5 - PIVOT) + shift[row]
        line = np.array([1.0, alpha])
        own = 0.8**2 * np.outer(line, line) + np.diag([0.0, 0.3**2])
        own += np.diag([COLUMNS["sigma_x"][row] ** 2, COLUMNS["sigma_y"][row] ** 2])
        covariance[position, :, position, :] = own
    covariance[:, 1, :, 1] += variance
    return stats.multivariate_normal(mean.ravel(), covariance.reshape(2 * num, 2 * num))


def expected(alphas, shift, variances):
    values = np.stack([COLUMNS["x"], COLUMNS["y"]], axis=-1)
    groups = [(0, 1), (2, 3, 4)]
    return sum(
        group_normal(rows, alpha, shift, variance).logpdf(values[list(rows)].ravel())
        for rows, alpha, variance in zip(groups, alphas, variances, strict=True)
    )


@pytest.mark.parametrize("evolution", ["log10 E(z)", "ln 1+z"])
@pytest.mark.parametrize("pooling", ["complete", "partial"])
def test_powers_of_redshift_shift_the_line(evolution, pooling):
    """Exponents of both coordinates, against the normal distribution of all measured values, with astropy's E(z)."""
    data = PointsInGroups.from_columns(COLUMNS | {"redshift": Z})
    model = Relation(pooling=pooling, pivot=PIVOT, evolution=evolution, Om0=0.25, priors={"evolution_x": 0.7})
    values = (COMPLETE if pooling == "complete" else PARTIAL) | {"evolution_y": -1.2}
    e = np.log10(FlatLambdaCDM(70.0, 0.25, Tcmb0=0.0).efunc(Z)) if "E(z)" in evolution else np.log1p(Z)
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bound(data))(values)
    alphas, variances = (ALPHA, ALPHA), (0.0, 0.0)
    if pooling == "partial":
        alphas, variances = found.values["alpha"], (SPREAD**2, SPREAD**2)
    shifts = np.repeat(alphas, [2, 3]) * 0.7 * e - 1.2 * e
    used = model.bound(data).used if pooling == "complete" else ...
    assert found.log_probs["observed"][used].sum() == pytest.approx(expected(alphas, shifts, variances), rel=1e-10)


@pytest.mark.parametrize("evolution", ["log10 E(z)", "ln 1+z"])
@pytest.mark.parametrize("selection", ["none", "x > -0.5"])
def test_slope_and_scatter_change_with_redshift(evolution, selection):
    """Against the normal distribution of each point, divided by the detected fraction."""
    data = PointsInGroups.from_columns(COLUMNS | {"redshift": Z})
    change = {"evolution_alpha": 0.8, "evolution_scatter": -1.5, "evolution_x": 0.7}
    options = {"pooling": "complete", "pivot": PIVOT, "evolution": evolution, "Om0": 0.25, "selection": selection}
    model = Relation(priors=change | {"evolution_scatter": "Normal(0, 1)"}, **options)
    e = np.log10(FlatLambdaCDM(70.0, 0.25, Tcmb0=0.0).efunc(Z)) if "E(z)" in evolution else np.log1p(Z)
    values = COMPLETE | {"evolution_y": -1.2, "evolution_scatter": -1.5}
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bind(data))(values).log_probs["observed"][data.used].sum()
    slope = ALPHA + 0.8 * e
    scatter = 0.3 * (10.0 if "log10" in evolution else np.e) ** (-1.5 * e)
    total = 0.0
    for i, a in enumerate(slope):
        mean = np.array([0.5, BETA + a * (0.5 + 0.7 * e[i] - PIVOT) - 1.2 * e[i]])
        errors = np.diag([COLUMNS["sigma_x"][i] ** 2, COLUMNS["sigma_y"][i] ** 2 + scatter[i] ** 2])
        covariance = 0.8**2 * np.outer([1.0, a], [1.0, a]) + errors
        total += stats.multivariate_normal(mean, covariance).logpdf([COLUMNS["x"][i], COLUMNS["y"][i]])
        total -= stats.norm.logsf(-0.5, 0.5, np.sqrt(covariance[0, 0])) if selection != "none" else 0.0
    assert found == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("pooling", ["complete", "none", "partial"])
def test_errors_in_common_are_integrated_out(pooling):
    data = PointsInGroups.from_columns(WITH_COMMON)
    values = dict(PARTIAL if pooling == "partial" else COMPLETE)
    if pooling == "none":
        values |= {name: np.full(2, value) for name, value in LINE.items()}
    model = Relation(pooling=pooling, pivot=PIVOT)
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bound(data))(values)
    alphas = found.values["alpha"] if pooling == "partial" else (ALPHA, ALPHA)
    spread = SPREAD if pooling == "partial" else 0.0
    variances = [spread**2 + error**2 for error in COMMON.values()]
    assert found.log_probs["observed"].sum() == pytest.approx(expected(alphas, np.zeros(5), variances), rel=1e-10)


@pytest.mark.parametrize("pooling", ["complete", "none", "partial"])
def test_common_errors_of_x_integrate_to_a_normal_distribution(pooling):
    """Quadrature over the sampled offsets against the normal distribution of all measured values of a group."""
    data = PointsInGroups.from_columns(COLUMNS | {"common_error_x": [COMMON[name] for name in COLUMNS["group"]]})
    values = dict(PARTIAL if pooling == "partial" else COMPLETE)
    if pooling == "none":
        values |= {name: np.full(2, value) for name, value in LINE.items()}
    model = Relation(pooling=pooling, pivot=PIVOT)
    nodes = np.linspace(-8.0, 8.0, 121)
    weights = stats.norm.pdf(nodes) * (nodes[1] - nodes[0])
    with jax.enable_x64(True):
        sites = compiled_sites(model, model.bound(data))
        found = [sites(values | {"_common_offset_x": np.full((2, 1), node)}) for node in nodes]
    np.testing.assert_allclose(found[0].values["common_offset_x"][:, 0], nodes[0] * np.array([0.5, 0.3]))
    alphas = found[0].values["alpha"] if pooling == "partial" else (ALPHA, ALPHA)
    spread = SPREAD if pooling == "partial" else 0.0
    used = model.bound(data).used
    for row, (rows, common) in enumerate(zip([(0, 1), (2, 3, 4)], COMMON.values(), strict=True)):
        densities = [site.log_probs["observed"][row] for site in found]
        densities = densities if pooling == "partial" else [density[used[row]].sum() for density in densities]
        group = group_normal(rows, alphas[row], np.zeros(5), spread**2)
        covariance = group.cov.reshape(len(rows), 2, len(rows), 2).copy()
        covariance[:, 0, :, 0] += common**2
        dense = stats.multivariate_normal(group.mean, covariance.reshape(group.cov.shape))
        measured = np.stack([COLUMNS["x"], COLUMNS["y"]], axis=-1)[list(rows)].ravel()
        integral = np.log(np.exp(densities) @ weights)
        assert integral == pytest.approx(dense.logpdf(measured), abs=1e-8)


@pytest.mark.parametrize("pooling", ["complete", "partial"])
def test_scatter_changes_with_a_predictor_of_the_group(pooling):
    mass = np.array([0.5, 0.5, -0.7, -0.7, -0.7])
    data = PointsInGroups.from_columns(COLUMNS | {"mass": mass}, group_predictors=["mass"])
    priors = {"scatter_group": "Normal(0, 1)"}
    values = (COMPLETE if pooling == "complete" else PARTIAL) | {"scatter_group": np.array([0.8])}
    values |= {"alpha_group": np.zeros(1), "beta_group": np.zeros(1)} if pooling == "partial" else {}
    model = Relation(pooling=pooling, pivot=PIVOT, priors=priors)
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bound(data))(values)
    alphas = found.values["alpha"] if pooling == "partial" else (ALPHA, ALPHA)
    total = 0.0
    for rows, alpha, change in zip([(0, 1), (2, 3, 4)], alphas, 0.8 * np.array([0.6, -0.6]), strict=True):
        group = group_normal(rows, alpha, np.zeros(5), SPREAD**2 if pooling == "partial" else 0.0)
        more = np.tile([0.0, 0.3**2 * (np.exp(2.0 * change) - 1.0)], len(rows))
        dense = stats.multivariate_normal(group.mean, group.cov + np.diag(more))
        total += dense.logpdf(np.stack([COLUMNS["x"], COLUMNS["y"]], axis=-1)[list(rows)].ravel())
    used = model.bound(data).used if pooling == "complete" else ...
    assert found.log_probs["observed"][used].sum() == pytest.approx(total, rel=1e-10)


def test_errors_in_common_are_sampled_beside_limits():
    """Where the density is not normal, the common error of a group is a parameter that shifts its points."""
    data = PointsInGroups.from_columns(WITH_COMMON | {"limit_y": ["<", "", "", "", ""]})
    values, standard = COMPLETE | {"_common_offset": np.array([0.7, -1.1])}, np.array([0.7, 0.7, -1.1, -1.1, -1.1])
    model = Relation(pooling="complete", pivot=PIVOT)
    with jax.enable_x64(True):
        found = compiled_sites(model, model.bound(data))(values)
    shift = standard * WITH_COMMON["common_error_y"]
    group = group_normal([3], ALPHA, shift, 0.0)
    assert found.log_probs["observed"][1, 1] == pytest.approx(group.logpdf([1.3, 2.9]), rel=1e-10)
    np.testing.assert_allclose(found.values["common_offset"], [0.35, -0.33])


def test_intercepts_and_errors_in_common_are_drawn_given_the_points(monte_carlo):
    """Both from their exact normal conditional, for groups whose intercepts come from a population."""
    data = PointsInGroups.from_columns(WITH_COMMON)
    model = Relation(pivot=PIVOT, priors={name: PARTIAL[name] for name in PARTIAL if name != "alpha_std"})

    def draw(key):
        program = handlers.substitute(model, {"alpha_std": 1e-6})
        trace = handlers.trace(handlers.seed(program, key)).get_trace(model.bound(data), recover=True)
        return trace["beta"]["value"], trace["common_offset"]["value"], trace["alpha"]["value"]

    with jax.enable_x64(True):
        beta, offset, alpha = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed(5)), 2000))
    np.testing.assert_allclose(alpha, ALPHA, atol=1e-4)
    values = np.stack([COLUMNS["x"], COLUMNS["y"]], axis=-1)
    for column, (rows, common) in enumerate(zip([(0, 1), (2, 3, 4)], COMMON.values(), strict=True)):
        design = np.tile([0.0, 1.0], len(rows))
        prior = np.array([SPREAD**2, common**2])
        whole = group_normal(rows, ALPHA, np.zeros(5), prior.sum())
        residual = np.linalg.solve(whole.cov, values[list(rows)].ravel() - whole.mean)
        mean = prior * (design @ residual)
        information = design @ np.linalg.solve(whole.cov, design)
        std = np.sqrt(prior - prior**2 * information)
        for drawn, centre, index in ((beta, BETA, 0), (offset, 0.0, 1)):
            standard = (np.asarray(drawn)[:, column] - centre - mean[index]) / std[index]
            monte_carlo.p_value(stats.kstest(standard, "norm").pvalue, name=f"{column} {index}")
        correlation = np.corrcoef(np.asarray(beta)[:, column], np.asarray(offset)[:, column])[0, 1]
        assert correlation == pytest.approx(-prior.prod() * information / std.prod(), abs=0.15)


def test_redshifts_and_common_errors_come_back(tmp_path):
    data = PointsInGroups.from_columns(WITH_COMMON | {"redshift": Z, "common_error_x": [0.1, 0.1, 0.0, 0.0, 0.0]})
    data.to_table().write(tmp_path / "points.ecsv")
    for other in (read_relation(tmp_path / "points.ecsv"), PointsInGroups.from_dict(data.to_dict())):
        np.testing.assert_array_equal(other.redshift, data.redshift)
        np.testing.assert_array_equal(other.common_error_y, [0.5, 0.3])
        np.testing.assert_allclose(other.common_error_x, [[0.1], [0.0]])
    bare = PointsInGroups.from_columns(COLUMNS)
    assert not {"redshift", "common_error_y"} & bare.to_dict().keys()
    assert not PointsInGroups.from_dict(bare.to_dict()).common_error_y.any()


def test_what_does_not_fit_is_refused():
    bare = PointsInGroups.from_columns(COLUMNS)
    with pytest.raises(DataError, match=r"evolution='ln E\(z\)' expects the column redshift; found none"):
        Relation(evolution="ln E(z)").bind(bare)
    two = PointsInGroups.from_columns(COLUMNS | {"redshift": Z, "w": Z}, predictors=("x", "w"))
    with pytest.raises(DataError, match="evolution_alpha expects one predictor; found 2"):
        Relation(evolution="ln E(z)", priors={"evolution_alpha": 1.0}).bind(two)
    with pytest.raises(ValueError, match="evolution of Relation"):
        Relation(evolution="E")
    with pytest.raises(OptionError, match="Om0: expected a number from 0 to 1; found 3"):
        Relation(Om0=3.0)
    with pytest.raises(DataError, match=r"common_error_y, row 1 .*one value in all points of a group"):
        PointsInGroups.from_columns(COLUMNS | {"common_error_y": [0.5, 0.4, 0.3, 0.3, 0.3]})
    for wrong, found in ((Z - 2.0, -2.0 + Z[0]), (np.r_[np.nan, Z[1:]], np.nan)):
        points = PointsInGroups.from_columns(COLUMNS | {"redshift": wrong})
        with pytest.raises(DataError, match=rf"a redshift above -1 for every point; found {found:g} in row 0"):
            Relation(evolution="ln E(z)").bind(points)


def test_a_column_z_of_another_meaning_does_not_matter():
    other = COLUMNS | {"z": np.linspace(-3.0, 3.0, len(Z))}
    bound, expected = (Relation().bind(read_relation(table)) for table in (other, COLUMNS))
    np.testing.assert_array_equal(bound.values, expected.values)
    data = read_relation(other, predictors=("x", "z"))
    np.testing.assert_array_equal(np.sort(data.values[..., 1][data.used]), other["z"])
    assert np.isnan(data.redshift).all()
    assert np.isnan(read_relation(COLUMNS | {"z": np.r_[np.nan, Z[1:]]}).redshift).any()


@pytest.mark.long
def test_a_line_with_a_break_is_found_again(monte_carlo):
    """150 points above a limit of y."""
    truth = {"alpha": 0.8, "alpha_above": 2.5, "x_break": 0.7, "beta": 1.5, "intrinsic_scatter": 0.2}
    truth |= {"x_mean": 0.5, "x_std": 1.2}
    num = 150
    design = {
        "x": np.linspace(0.0, 1.0, num),
        "y": np.full(num, 1.0),
        "sigma_x": np.full(num, 0.1),
        "sigma_y": np.full(num, 0.1),
    }
    model = Relation(broken=True, pooling="complete", selection="y > 0.5")
    with jax.enable_x64(True):
        data, _ = model.simulate(jax.random.key(seed(1)), PointsInGroups.from_columns(design), truth)
    assert data.values[..., 1].min() > 0.5
    fit = hbm.sample(model, data, seed=seed(2), num_chains=2, progress=False)
    for name, value in truth.items():
        draws = fit.posterior[name].to_numpy()
        monte_carlo.within(draws.mean(), value, draws.std(), name=name)
    (median, *_) = [line for line in hbm.plotting.lines(fit).axes[0].lines if len(line.get_xdata()) > 10]
    slopes = np.gradient(median.get_ydata(), median.get_xdata())
    assert slopes[0] < 1.5 < slopes[-1]  # the line is drawn with its break
    assert {"x", "y"} <= set(hbm.latents(fit).data_vars)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"student_t": True}, "broken=True expects student_t=False; found True"),
        ({"selection": "x > 0 and y < 3"}, "broken=True expects at most one limit"),
        ({"evolution": "ln E(z)"}, "broken=True expects evolution='none'"),
    ],
)
def test_options_that_a_break_does_not_have_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        Relation(broken=True, **options)


def test_groups_with_a_break_are_refused():
    with pytest.raises(DataError, match=r"broken=True expects one line .* found pooling='partial' and 2 groups"):
        Relation(broken=True).bind(PointsInGroups.from_columns(COLUMNS))
