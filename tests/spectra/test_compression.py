"""Folding by few energies against a dense fold, for spectra drawn at random."""

import numpy as np
import pytest
from exact_whim import whim_depth
from threadpoolctl import threadpool_limits

from hbm_jax.cosmology import Cosmology
from hbm_jax.models.xray.absorbed_counts import TOLERANCE
from hbm_jax.models.xray.population import Medium
from hbm_jax.models.xray.trial_spectra import random_draws, trials
from hbm_jax.precomputation import on_every_core
from hbm_jax.spectra import fold as fold_expression
from hbm_jax.spectra import xrt_like_arf, xrt_like_rmf
from hbm_jax.spectra.folding.fold import spectra_at
from hbm_jax.spectra.folding.panels import STEEPNESS, integrals_of, num_nodes_of, panel_edges
from hbm_jax.spectra.folding.response import Response
from hbm_jax.spectra.model.absorbers import Absorption, Whim, precise_cross_section

Z, EXPOSURE = 1.7, 4000.0


@pytest.fixture(scope="module", autouse=True)
def one_thread_of_linear_algebra():
    """Two processes of tests whose BLAS have a thread for each core wait for each other, ten times as long."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module")
def instrument():
    rmf = xrt_like_rmf()
    response = Response.of(rmf, xrt_like_arf(rmf))
    inside = (response.e_min >= 0.3) & (response.e_max <= 10.0)
    groups = np.where(inside, np.cumsum(inside) // 9, -1)
    groups -= groups[inside].min() * inside
    return response.energy, response.grouped(groups) * EXPOSURE


@pytest.fixture(scope="module")
def found(instrument, counts):
    """The fold that several tests look at."""
    return compress(*instrument, counts)


@pytest.fixture(scope="module")
def soft(instrument):
    """Photons of 0.3 to 2.5 keV and the groups that see them: most of the edges, and less to do."""
    energy, matrix = instrument
    rows = np.flatnonzero((energy[:-1] > 0.3) & (energy[1:] < 2.5))
    columns = matrix[rows].sum(axis=0) > 0.05 * matrix[rows].sum(axis=0).max()
    energy, matrix = energy[rows[0] : rows[-1] + 2], matrix[np.ix_(rows, columns)]
    return energy, matrix, counts_of(energy, matrix)


def compress(energy, matrix, counts, *, whim=False, **options):
    """Return the fold of absorbed power laws."""
    medium = Medium(whim=whim)
    spectrum = medium.spectrum(Z, (0.3, 10.0))
    options = {"draws": random_draws(whim), "tolerance": TOLERANCE} | options
    return fold_expression(spectrum, energy, matrix, counts, trials(medium, spectrum), **options)


def draws(num, seed):
    rng = np.random.default_rng(seed)
    return {
        "index": rng.normal(2.0, 0.5, num),
        "nh": 10.0 ** np.minimum(rng.normal(-0.5, 1.0, num), 3.0),
        "nh_mw": 10.0 ** rng.normal(-1.4, 0.4, num),
        "n0": np.minimum(rng.normal(-7.0, 1.0, num), -5.7),
        "T": rng.uniform(4.5, 7.5, num),
    }


def spectra(E, p, rows, tau=0.0):
    cold = p["nh_mw"][rows, None] * precise_cross_section(E, "wilm") + p["nh"][rows, None] * precise_cross_section(
        E * (1 + Z), "wilm"
    )
    return E ** -p["index"][rows, None] * np.exp(-cold - tau)


def dense(energy, matrix, num, kinks=()):
    """Gauss's rule in every piece of every bin between two edges: energies and what folds them."""
    inner = np.concatenate([Absorption(z=(0.0, Z)).discontinuities(energy[0], energy[-1]), kinks])
    pieces = np.unique(np.concatenate([energy, inner]))
    x, w = np.polynomial.legendre.leggauss(num)
    half = 0.5 * np.diff(pieces)[:, None]
    E = 0.5 * (pieces[1:] + pieces[:-1])[:, None] + half * x
    place = np.searchsorted(energy, E[:, 0], "right") - 1
    return E.ravel(), (matrix[place][:, None, :] * (half * w)[..., None]).reshape(E.size, -1)


def change(counts, few, exact):
    """Change of the log likelihood of spectra scaled to the counts."""
    scale = counts.sum() / exact.sum(axis=1, keepdims=True)
    return np.log(few / exact) @ counts - (scale * (few - exact)).sum(axis=1)


def counts_of(energy, matrix):
    p = {key: np.array([value]) for key, value in (("index", 2.0), ("nh", 0.3), ("nh_mw", 0.03))}
    E, fold = dense(energy, matrix, 2)
    shape = (spectra(E, p, np.array([0])) @ fold)[0]
    return np.random.default_rng(3).poisson(1000 * shape / shape.sum()).astype(float)


@pytest.fixture(scope="module")
def counts(instrument):
    return counts_of(*instrument)


def test_random_spectra_keep_their_likelihood(instrument, counts, found):
    energy, matrix = instrument
    assert found.errors[0] <= 1e-4
    E, fold = dense(energy, matrix, 3)
    p, rows = draws(100, 1), np.arange(100)
    moved = abs(change(counts, spectra(found.nodes.energy, p, rows) @ found.nodes.matrix.T, spectra(E, p, rows) @ fold))
    print(f"{len(found.nodes.energy)} energies for {len(E)}; log likelihood: {moved.max():.1e}")
    assert len(found.nodes.energy) < len(E) / 6
    assert moved.max() < 1e-4


def test_groups_that_count_nothing_stand_in_no_way(instrument, counts, found):
    """As channels above the energies of a response."""
    energy, matrix = instrument
    more = compress(energy, np.pad(matrix, ((0, 0), (0, 20))), np.pad(counts, (0, 20)))
    assert more.errors[0] <= 1e-4
    assert len(more.nodes.energy) < 1.5 * len(found.nodes.energy)
    assert (more.nodes.matrix[-20:] == 0).all()


def moved_by_a_medium(energy, matrix, counts):
    """Energies taken, those of the dense fold, and the largest change of the log likelihood of eight spectra."""
    found = compress(energy, matrix, counts, whim=True)
    assert found.errors[0] <= 1e-4
    p, rows = draws(8, 2), np.arange(8)
    kinks = Whim(z=Z, cosmology=Cosmology.flat(H0=70.0, Om0=0.3)).slope_discontinuities(energy[0], energy[-1])
    E, fold = dense(energy, matrix, 2, kinks)
    folded = [
        spectra(e, p, rows, whim_depth(e, Z, p["n0"], p["T"], np.full(8, 0.3), "wilm")) @ m
        for e, m in ((found.nodes.energy, found.nodes.matrix.T), (E, fold))
    ]
    return len(found.nodes.energy), len(E), abs(change(counts, *folded)).max()


def test_a_medium_needs_more_energies(soft, found):
    num, num_dense, moved = moved_by_a_medium(*soft)
    assert len(found.nodes.energy) < num < num_dense / 2
    assert moved < 1e-4


@pytest.mark.long
def test_a_medium_over_all_energies(instrument, counts):
    num, num_dense, moved = moved_by_a_medium(*instrument, counts)
    print(f"with a medium, {num} energies for {num_dense}: {moved:.1e}")
    assert moved < 1e-4


def test_a_looser_tolerance_takes_fewer_energies_and_none_is_too_tight(instrument, counts, found):
    no, loose = (compress(*instrument, counts, tolerance=t) for t in (0.0, 1e-1))
    assert len(loose.nodes.energy) < len(found.nodes.energy) < len(no.nodes.energy)
    assert no.errors[0] < found.errors[0] < loose.errors[0] < 1e-1
    assert no.errors[0] < 1e-9  # where no level keeps the tolerance, nothing is compressed


@pytest.mark.parametrize("brightness", [0.1, 1.0, 30.0, 1e6])
def test_the_bound_holds_however_bright_a_spectrum_is(instrument, counts, found, brightness):
    energy, matrix = instrument
    E, fold = dense(energy, matrix, 3)
    p, rows = draws(100, 4), np.arange(100)
    exact = spectra(E, p, rows) @ fold
    scale = brightness * counts.sum() / exact.sum(axis=1, keepdims=True)
    few, exact = scale * (spectra(found.nodes.energy, p, rows) @ found.nodes.matrix.T), scale * exact
    moved = np.abs(np.log(few / exact) @ counts - (few - exact).sum(axis=1))
    bound = found.bound(brightness * counts.sum(), counts.sum())
    print(f"{brightness:g} times as bright: {moved.max():.1e}, {(moved / bound).max():.2f} of the bound")
    assert (moved <= 1.2 * bound).all()  # it is proven for the spectra tried; these lie between them
    assert bound < 1e-4 + 1e-7 * max(brightness, 1.0) * counts.sum()


def test_narrow_panels_take_few_nodes_and_integrate_as_well():
    energy = np.geomspace(0.3, 10.0, 40)
    panels = np.unique(np.concatenate([np.geomspace(0.3, 10.0, 60), 1.0 + np.geomspace(1e-6, 0.02, 9)]))
    num = num_nodes_of(panels, 1e-9)
    assert num.min() == 1
    assert num.max() >= 4
    nodes, integrals = integrals_of(energy, panels, num)
    assert len(nodes) == num.sum()
    slope = 1.0 - STEEPNESS
    exact = np.diff(energy**slope) / slope  # of E^-STEEPNESS
    found = integrals @ nodes**-STEEPNESS
    # A bin holds a part of a panel, where the polynomial errs by more than over the whole of it.
    np.testing.assert_allclose(found, exact, rtol=1e-3)
    assert found.sum() == pytest.approx(exact.sum(), rel=1e-7)


def test_panels_are_cut_at_edges():
    edges = Absorption(z=(0.0, Z)).discontinuities(0.3, 10.0)
    assert np.abs(edges - 0.538).min() < 0.005  # K of oxygen
    assert np.abs(edges - 1.839 / (1 + Z)).min() < 0.005  # K of silicon in the host
    panels = panel_edges(0.3, 10.0, edges, (), width=0.05, gap=0.0)
    assert panels[0] == 0.3
    assert panels[-1] == 10.0
    assert (np.diff(panels) > 0).all()
    assert np.log(panels[1:] / panels[:-1]).max() < 0.0501
    assert np.isin(edges, panels).all()


def test_trial_spectra_are_what_they_say():
    E = np.array([0.5, 1.0, 5.0])
    medium = Medium()
    spectrum = medium.spectrum(Z, (0.3, 10.0))
    found = spectra_at(spectrum, E, trials(medium, spectrum))
    assert found.shape == (36, 3)
    first = np.exp(-0.02 * precise_cross_section(E, "wilm"))
    np.testing.assert_allclose(found[0] / found[0, 2], first / first[2], rtol=1e-12)
    medium = Medium(whim=True)
    spectrum = medium.spectrum(Z, (0.3, 10.0)).mapped(lambda part: part.in_double_precision())
    found = spectra_at(spectrum, E, trials(medium, spectrum))
    assert found.shape == (72, 3)
    last = (
        np.exp(
            -0.02 * precise_cross_section(E)
            - 1e3 * precise_cross_section(E * (1 + Z))
            - whim_depth(E, Z, [-7.0], [6.0], [0.3])[0]
        )
        / E**2
    )
    np.testing.assert_allclose(found[-1] / found[-1, 2], last / last[2], rtol=1e-3)


def test_what_goes_wrong_beside_the_main_thread_is_told():
    assert on_every_core(lambda x: 1.0 / x, [1.0, 4.0]) == [1.0, 0.25]
    with pytest.raises(ZeroDivisionError):
        on_every_core(lambda x: 1.0 / x, [1.0, 0.0])
