import dataclasses
import subprocess
import sys
from io import BytesIO

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgba
from PIL import Image
from scipy import stats

import hbm_jax as hbm
from hbm_jax.cosmology import Cosmology
from hbm_jax.models.supernovae.laws import colour, stretch
from hbm_jax.notation import quote, quoted_math
from hbm_jax.plotting import draws
from hbm_jax.plotting.style import ORANGE, Figure, in_all_colours, in_few_colours, to_pixels, to_png
from hbm_jax.plotting.supernovae import hubble
from hbm_jax.plotting.supernovae.populations import density, population_draws

SUPERNOVA_FIGURES = ("hubble_diagram", "corner", "trace", "populations", "hubble_residuals")


def decoded(figure):
    image = Image.open(BytesIO(to_png(figure, dpi=40)))
    image.load()
    return image


def texts(figure):
    labels = [text for axes in figure.axes for text in (axes.get_xlabel(), axes.get_ylabel()) if text]
    return labels + [text.get_text() for axes in figure.axes for text in axes.texts]


def test_few_colours_are_the_right_ones():
    figure = Figure(figsize=(3.0, 2.0))
    axes = figure.subplots()
    axes.imshow(np.linspace(0.0, 1.0, 256).reshape(16, 16), cmap="viridis", aspect="auto")
    axes.plot([3], [3], "s", color="#ff00ff", markersize=1.0)  # few pixels
    canvas, dpi = figure.canvas, figure.dpi
    pixels = to_pixels(figure, dpi=100)
    assert (figure.canvas, figure.dpi) == (canvas, dpi)
    assert pixels.shape == (200, 300, 4)
    whole, few = in_all_colours(pixels), in_few_colours(pixels, 64)
    pictures = [np.asarray(Image.open(BytesIO(png)).convert("RGB"), float) for png in (whole, few)]
    np.testing.assert_array_equal(pictures[0], pixels[..., :3])
    assert len(np.unique(pictures[1].reshape(-1, 3), axis=0)) <= 64
    assert np.linalg.norm(pictures[0] - pictures[1], axis=-1).max() < 40  # of 441: 13; median cut gives 100
    assert len(few) < len(whole)


@pytest.fixture(scope="module")
def corner(supernova_fit):
    """Eleven parameters, drawn once."""
    return hbm.plotting.corner(supernova_fit)


@pytest.mark.parametrize("name", SUPERNOVA_FIGURES)
def test_figures_are_drawn_and_leave_matplotlib_alone(name, supernova_fit, own_fit):
    from matplotlib import pyplot

    user = {"font.size": 31.0, "axes.facecolor": "red", "xtick.direction": "out"}
    with matplotlib.rc_context(user):
        before = dict(matplotlib.rcParams.copy())
        figure = getattr(hbm.plotting, name)(own_fit if name in ("corner", "trace") else supernova_fit)
        image = decoded(figure)
        assert dict(matplotlib.rcParams.copy()) == before
    assert pyplot.get_fignums() == []
    colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)
    assert len(colours) > 20
    assert [255, 0, 0] not in colours.tolist()


def test_saved_pdf_has_scalable_text(own_fit, tmp_path):
    hbm.plotting.trace(own_fit).savefig(tmp_path / "trace.pdf")
    content = (tmp_path / "trace.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content


def test_axes_name_quantity_and_unit(supernova_fit, corner):
    figure = hbm.plotting.hubble_diagram(supernova_fit)
    upper, lower = figure.axes
    assert upper.get_ylabel() == r"distance modulus $\mu$ [mag]"
    assert lower.get_ylabel().endswith("[mag]")
    assert lower.get_xlabel() == r"redshift $z_\mathrm{CMB}$"
    assert lower.get_xscale() == "log"
    assert r"$\sigma_\mathrm{int}$ [mag]" in texts(corner)
    assert "$M_0$ [mag]" in texts(hbm.plotting.trace(supernova_fit, ["M0"]))
    figure = hbm.plotting.populations(supernova_fit, 20)
    assert "observed $c$ [mag]" in texts(figure)
    low, high = figure.axes[0].get_xlim()
    x1 = np.asarray(supernova_fit.data.x1)
    np.testing.assert_allclose([low, high], [x1.min() - 0.05 * np.ptp(x1), x1.max() + 0.05 * np.ptp(x1)])


def test_every_supernova_is_plotted(supernova_fit):
    sne = hbm.data.load_jla()
    everything = dataclasses.replace(supernova_fit, args=(sne,))  # the figure takes the data as they come
    upper, lower = hbm.plotting.hubble_diagram(everything, 10).axes
    for axes, extra in ((upper, 0), (lower, 1)):
        counts = [len(container[0].get_xdata()) for container in axes.containers]
        assert sum(counts[: len(counts) - extra]) == 740
    labels = upper.get_legend_handles_labels()[1]
    assert "SDSS (374)" in labels
    assert "HST (9)" in labels


def test_standardised_moduli_and_errors_by_hand(supernova_fit):
    sne, median = supernova_fit.data, supernova_fit.summary()["median"]
    i = int(np.argmax(sne.log10_mass))
    alpha, beta = median["alpha"], median["beta"]
    mu = sne.m_b[i] - median["M0"] + alpha * sne.x1[i] - beta * sne.c[i] - median["delta_M"]
    v = sne.covariance[i]
    variance = v[0, 0] + alpha**2 * v[1, 1] + beta**2 * v[2, 2]
    variance += 2 * alpha * v[0, 1] - 2 * beta * v[0, 2] - 2 * alpha * beta * v[1, 2]
    variance += sne.variance_lensing[i] + sne.variance_velocity[i] + median["sigma_int"] ** 2
    points = hubble.standardise(supernova_fit)
    assert points.mu[i] == pytest.approx(mu, abs=1e-10)
    assert points.error[i] == pytest.approx(np.sqrt(variance), rel=1e-10)


def test_band_is_the_modulus_of_each_draw(supernova_fit):
    z = np.array([0.02, 0.3, 1.0])
    moduli = hubble.modulus_draws(supernova_fit, hubble.at_redshifts(supernova_fit.data, z), num_draws=7)
    total = 4 * 200
    chosen = draws.evenly_spaced(total, 7)
    Om0, M0 = (supernova_fit.posterior[name].to_numpy().ravel() for name in ("Om0", "M0"))
    for row, index in enumerate(chosen):
        reference = Cosmology.flat(H0=70.0, Om0=float(Om0[index])).to_astropy().distmod(z).value
        np.testing.assert_allclose(moduli[row], reference + M0[index] - np.median(M0), atol=1e-6)


class Shifted(hbm.models.Supernova):
    """Distances of its own: a tenth of a magnitude a unit of redshift, and half a magnitude for one survey."""

    def distmod(self, data, cosmology):
        here = np.array(data.survey) == "snls"
        return super().distmod(data, cosmology) + 0.1 * data.z_cmb + 0.5 * here


def shown(figure, rows):
    """Points of the upper and the lower panel, and the curve of the upper one."""
    upper, lower = figure.axes
    (curve,) = [line for line in upper.get_lines() if line.get_label() == "posterior median"]
    points = [np.concatenate([c[0].get_ydata() for c in axes.containers[:rows]]) for axes in (upper, lower)]
    return *points, curve.get_ydata()


def test_figure_follows_a_subclass_and_its_own_distances(supernova_fit):
    fit = dataclasses.replace(supernova_fit, program=Shifted())
    surveys = len(fit.data.survey_counts)
    upper, lower, curve = shown(hbm.plotting.hubble_diagram(fit, 20), surveys)
    plain_upper, plain_lower, plain_curve = shown(hbm.plotting.hubble_diagram(supernova_fit, 20), surveys)
    z = np.geomspace(fit.data.z_cmb.min(), fit.data.z_cmb.max(), hubble.NUM_GRID)
    nearest = np.array(hubble.at_redshifts(fit.data, z).survey) == "snls"
    np.testing.assert_allclose(curve - plain_curve, 0.1 * z + 0.5 * nearest, atol=1e-9)
    data, order = (
        fit.data,
        np.concatenate([np.flatnonzero(np.array(fit.data.survey) == s) for s in fit.data.survey_counts]),
    )
    own = (0.1 * data.z_cmb + 0.5 * (np.array(data.survey) == "snls"))[order]
    np.testing.assert_allclose(lower - plain_lower, -own, atol=1e-9)
    np.testing.assert_allclose(plain_upper - plain_lower, np.interp(np.log(data.z_cmb), np.log(z), plain_curve)[order])
    assert upper.shape == lower.shape


def test_residuals_are_about_zero_and_the_median_is_the_zero_line(supernova_fit):
    _, lower = hbm.plotting.hubble_diagram(supernova_fit).axes
    (median,) = [line for line in lower.get_lines() if line.get_label() == "posterior median"]
    np.testing.assert_array_equal(median.get_ydata(), 0.0)
    shown = np.concatenate([container[0].get_ydata() for container in lower.containers[:-1]])
    error = hubble.standardise(supernova_fit).error
    assert abs(np.mean(shown)) < 4 * np.mean(error) / np.sqrt(len(shown))
    assert 0.5 < np.std(shown) / np.mean(error) < 1.5


def test_bins_give_the_weighted_mean():
    z = np.geomspace(0.01, 1.0, 40)
    centre, mean, error = hubble.binned(z, np.full(40, 0.1), np.full(40, 0.2))
    np.testing.assert_allclose(mean, 0.1)
    np.testing.assert_allclose(error, 0.2 / np.sqrt(10))
    assert len(centre) == 4


def test_corner_holds_the_parameters_in_the_models_order_with_their_intervals(supernova_fit, corner):
    figure = corner
    names = [name for name in supernova_fit.program.all_priors if name != "H0"]
    labels = [hbm.plotting.label(name, supernova_fit.units.get(name, "")) for name in names]
    written = [text for text in figure.axes[0].texts if text.get_text() in labels]
    below = [text for text in written if text.get_rotation() == 0.0]
    assert [text.get_text() for text in sorted(below, key=lambda text: text.get_position()[0])] == labels
    beside = [text for text in written if text.get_rotation() == 90.0]
    assert [text.get_text() for text in sorted(beside, key=lambda text: -text.get_position()[1])] == labels[1:]
    row = supernova_fit.summary().loc["Om0"]
    interval = quoted_math(quote(row["median"], row["lower_68"], row["upper_68"]))
    assert rf"$\Omega_\mathrm{{m}}$ = {interval}" in texts(figure)


def test_contours_of_the_corner_hold_their_fractions_of_the_draws_where_the_ticks_say(supernova_fit):
    names = ["alpha", "Om0", "M0"]
    figure = hbm.plotting.corner(supernova_fit, names, truths={"M0": -19.05})
    (axes,) = figure.axes
    draws = {name: supernova_fit.posterior[name].to_numpy().ravel() for name in names}

    def positions(name, where, rotation_of_label):
        """Positions of draws in the axes, from the numbers at the ticks of the lower or the left edge."""
        label = hbm.plotting.label(name, supernova_fit.units.get(name, ""))
        (centre,) = [
            text.get_position()[where]
            for text in axes.texts
            if text.get_text() == label and text.get_rotation() == rotation_of_label
        ]
        numbers = [text for text in axes.texts if text.get_rotation() == 45.0 and text.get_position()[1 - where] < 0.0]
        numbers = [text for text in numbers if abs(text.get_position()[where] - centre) < 0.5]
        values = [float(text.get_text().replace("\N{MINUS SIGN}", "-")) for text in numbers]
        slope, start = np.polyfit(values, [text.get_position()[where] for text in numbers], 1)
        return slope * draws[name] + start, slope * -19.05 + start

    (x, _), (y, truth) = positions("Om0", 0, 0.0), positions("M0", 1, 90.0)
    outer, inner = (c for c in axes.collections if isinstance(c, PathCollection) and len(c.get_facecolor()))
    for contours, fraction in ((outer, 0.95), (inner, 0.68)):
        inside = sum(path.contains_points(np.column_stack([x, y])).mean() for path in contours.get_paths())
        assert inside == pytest.approx(fraction, abs=0.015)
    marked = [c for c in axes.collections if c.get_edgecolor().tolist() == [list(to_rgba(ORANGE))]]
    level = [segment for segment in marked[0].get_segments() if segment[0, 1] == segment[1, 1]]
    assert len(level) == 2
    np.testing.assert_allclose([segment[:, 1] for segment in level], truth)
    with pytest.raises(ValueError, match="truths: expected values of alpha, Om0, M0; found beta"):
        hbm.plotting.corner(supernova_fit, names, truths={"beta": 3.0})


def test_population_band_is_the_normal_density(supernova_fit):
    grid = np.linspace(-12.0, 12.0, 4001)
    density = population_draws(supernova_fit, "x1", grid, 5)
    np.testing.assert_allclose(np.trapezoid(density, grid, axis=1), 1.0, rtol=1e-6)
    mean = np.trapezoid(density * grid, grid, axis=1)
    chosen = supernova_fit.posterior["x1_mean"].to_numpy().ravel()[draws.evenly_spaced(800, 5)]
    np.testing.assert_allclose(mean, chosen, atol=1e-6)


COLOURS = np.linspace(-1.0, 1.5, 6)


def skew_normal_location_and_scale(mean, std, shape):
    """Location and scale of the skew normal of this mean, standard deviation and shape (Azzalini 1985)."""
    unit = stats.skewnorm(shape)
    return mean - std / unit.std() * unit.mean(), std / unit.std()


@pytest.mark.parametrize(
    ("law", "parameters", "expected"),
    [
        (stretch.NormalStretch(), {"x1_mean": 0.1, "x1_std": 0.5, "alpha": 0.14}, stats.norm(0.1, 0.5)),
        (
            stretch.SkewedStretch(),
            {"x1_mean": 0.1, "x1_std": 0.5, "x1_skew": -3.0, "alpha": 0.14},
            stats.skewnorm(-3.0, *skew_normal_location_and_scale(0.1, 0.5, -3.0)),
        ),
        (
            colour.Dust(),
            {"c_mean": -0.1, "c_std": 0.05, "beta": 2.0, "beta_dust": 4.0, "c_dust": 0.2},
            stats.exponnorm(4.0, -0.1, 0.05),
        ),
        (colour.BrokenColour(), {"c_mean": 0.1, "c_std": 0.5, "beta": 2.0, "beta_red": 4.0}, stats.norm(0.1, 0.5)),
    ],
)
def test_population_is_that_of_the_law(law, parameters, expected):
    found = density(law, {name: np.array([value]) for name, value in parameters.items()}, COLOURS, 1e-4)
    np.testing.assert_allclose(found[0], expected.pdf(COLOURS), rtol=1e-4, atol=1e-12)
    if isinstance(law, colour.Dust):  # with errors: a normal and an exponential variable, whose widths add
        found = density(law, {name: np.array([value]) for name, value in parameters.items()}, COLOURS, 0.12)
        np.testing.assert_allclose(found[0], stats.exponnorm(0.2 / 0.13, -0.1, 0.13).pdf(COLOURS), rtol=1e-10)


@pytest.mark.long
def test_population_of_a_mixture_has_both_parts(supernova_fit):
    fixed = {"x1_shift": 2.0, "x1_std_low": 0.3, "x1_fraction_low": 0.25}
    fit = dataclasses.replace(supernova_fit, program=hbm.models.Supernova(stretch="two", priors=fixed))
    grid = np.linspace(-12.0, 12.0, 4001)
    mean, std = (
        supernova_fit.posterior[name].to_numpy().ravel()[draws.evenly_spaced(800, 5), None]
        for name in ("x1_mean", "x1_std")
    )
    expected = 0.75 * stats.norm.pdf(grid, mean, std) + 0.25 * stats.norm.pdf(grid, mean - 2.0, 0.3)
    np.testing.assert_allclose(population_draws(fit, "x1", grid, 5), expected, rtol=1e-3, atol=1e-3)
    lower = hbm.plotting.populations(fit, 5).axes[2]
    (line,) = (line for line in lower.lines if line.get_label() == "population mean")
    everything = [np.median(supernova_fit.posterior["x1_mean"]) - 0.25 * 2.0] * 2
    np.testing.assert_allclose(line.get_ydata(), everything, atol=1e-3)


def test_own_model_has_corner_and_trace(own_fit):
    corner = hbm.plotting.corner(own_fit)
    assert "my_slope" in texts(corner)
    trace = hbm.plotting.trace(own_fit, ["my_slope"])
    assert len(trace.axes) == 2
    assert len([line for line in trace.axes[0].get_lines() if len(line.get_xdata()) == 200]) == 4


def test_trace_marks_divergent_draws(own_fit):
    tree = own_fit.tree.copy(deep=True)
    tree["sample_stats"]["diverging"][:] = False
    tree["sample_stats"]["diverging"][1, 17] = True
    figure = hbm.plotting.trace(dataclasses.replace(own_fit, tree=tree))
    (marks,) = [line for line in figure.axes[0].get_lines() if line.get_gid() == "divergent"]
    assert list(marks.get_xdata()) == [17]
    assert "divergent (1)" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_ranks_of_a_stuck_chain_leave_the_band(own_fit):
    tree = own_fit.tree.copy(deep=True)
    tree["posterior"]["my_slope"][0] += 100.0
    axes = hbm.plotting.trace(dataclasses.replace(own_fit, tree=tree), ["my_slope"]).axes[1]
    counts = axes.patches[1].get_data().values
    assert counts[:15].sum() == 0
    assert counts[15:].sum() == 200


def test_errors_name_what_was_expected(own_fit, supernova_fit):
    with pytest.raises(
        ValueError, match=r"no parameter 'slop' .did you mean 'my_slope'\?.: expected names among .*my_slope"
    ):
        hbm.plotting.corner(own_fit, ["slop"])
    for name in ("hubble_diagram", "populations"):
        with pytest.raises(ValueError, match=f"{name}: expected a fit of hbm_jax.models.Supernova"):
            getattr(hbm.plotting, name)(own_fit)
        with pytest.raises(ValueError, match="loaded without its program"):
            getattr(hbm.plotting, name)(dataclasses.replace(supernova_fit, program=None))


def test_missing_packages_are_named_with_the_extra_that_brings_them():
    code = "import sys; sys.modules['matplotlib'] = None; import hbm_jax.plotting"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected the package matplotlib" in done.stderr
    assert "pip install 'hbm_jax[plots]'" in done.stderr
