"""Grating spectra (type II with orders) and split responses, written here and compared with plain sums."""

import numpy as np
import pytest
from astropy.io import fits
from scipy import optimize, sparse
from scipy.special import gammaln

from hbm_jax import best_fit
from hbm_jax.data import read_grouped_spectra
from hbm_jax.models import SpectralFit
from hbm_jax.spectra import Arf, Response, Rmf, read_arf, read_rmf, read_spectra, write_arf
from hbm_jax.spectra.folding.response import summed_response
from hbm_jax.spectra.ogip.gratings import file_name, selected_rows
from hbm_jax.validation import DataError

NUM = 40  # channels, whose energies decrease
BIN_LO = 2.0 + 0.25 * np.arange(NUM)  # wavelengths [A]
E_MIN, E_MAX = 12.398 / (BIN_LO + 0.25), 12.398 / BIN_LO
EDGES = np.append(E_MIN[::-1], E_MAX[0])
ORDERS = [(1, -1), (1, 1), (2, -1), (2, 1)]  # TG_PART, TG_M
AREAS = {order: 20.0 + 10 * number + 30 * np.exp(-((EDGES[1:] - 2) ** 2)) for number, order in enumerate(ORDERS)}
EXPOSURE, SCALES = 5000.0, (4.0, 3.5)


def matrix(order):
    """Rows of three channels: increasing energies have decreasing channel numbers."""
    dense = np.zeros((NUM, NUM))
    for row in range(NUM):
        for step, weight in ((-1, 0.15), (0, 0.7 - 0.05 * (order[0] == 1)), (1, 0.15)):
            if 0 <= NUM - 1 - row + step < NUM:
                dense[row, NUM - 1 - row + step] = weight
    return dense


def rmf_of(order):
    return Rmf(EDGES, sparse.csr_matrix(matrix(order)), np.arange(1, NUM + 1), E_MIN, E_MAX, str(order))


def photons(edges=EDGES, photon_index=1.6, norm=0.3):
    return norm * np.diff(edges ** (1 - photon_index)) / (1 - photon_index)


def expected(order, **values):
    return EXPOSURE * (photons(**values) * AREAS[order]) @ matrix(order)


def decreasing(path, name):
    """Reverse the rows of an extension, as in files of gratings that are in the order of wavelengths."""
    with fits.open(path, mode="update") as hdus:
        hdus[name].data = hdus[name].data[::-1].copy()


def matrix_table(edges, dense, name="MATRIX", step=1):
    """A matrix with one run of all channels in each row; the rows in decreasing energy for a step of -1."""
    one = np.ones(len(dense), int)
    runs = (("N_GRP", one), ("F_CHAN", one), ("N_CHAN", NUM * one))
    columns = [
        fits.Column("ENERG_LO", "D", unit="keV", array=edges[:-1][::step]),
        fits.Column("ENERG_HI", "D", unit="keV", array=edges[1:][::step]),
        *(fits.Column(key, "I", array=values) for key, values in runs),
        fits.Column("MATRIX", f"{NUM}D", array=dense[::step]),
    ]
    table = fits.BinTableHDU.from_columns(columns, name=name)
    table.header["TLMIN4"] = 1
    return table


def bounds_table():
    energies = (fits.Column(key, "D", array=values) for key, values in (("E_MIN", E_MIN), ("E_MAX", E_MAX)))
    columns = [fits.Column("CHANNEL", "I", array=np.arange(1, NUM + 1)), *energies]
    return fits.BinTableHDU.from_columns(columns, name="EBOUNDS")


def write_tables(path, *tables):
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file with four orders, their backgrounds, and a response file for each order."""
    path = tmp_path_factory.mktemp("grating")
    rng = np.random.default_rng(0)
    up, down = (rng.poisson(0.5 * scale, (4, NUM)) for scale in SCALES)
    counts = rng.poisson([expected(order) for order in ORDERS]) + rng.poisson(0.5, (4, NUM))
    part, order = np.array(ORDERS).T
    columns = [
        fits.Column("SPEC_NUM", "I", array=np.arange(1, 5)),
        fits.Column("TG_M", "I", array=order),
        fits.Column("TG_PART", "I", array=part),
        fits.Column("TG_SRCID", "I", array=np.ones(4)),
        fits.Column("CHANNEL", f"{NUM}I", array=np.tile(np.arange(1, NUM + 1), (4, 1))),
        fits.Column("COUNTS", f"{NUM}I", array=counts),
        fits.Column("STAT_ERR", f"{NUM}E", array=1 + np.sqrt(counts + 0.75)),
        fits.Column("BACKGROUND_UP", f"{NUM}I", array=up),
        fits.Column("BACKGROUND_DOWN", f"{NUM}I", array=down),
        fits.Column("BIN_LO", f"{NUM}D", unit="angstrom", array=np.tile(BIN_LO, (4, 1))),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    table.header.update(EXPOSURE=EXPOSURE, BACKSCAL=1.0, BACKSCUP=SCALES[0], BACKSCDN=SCALES[1], POISSERR=False,
                        AREASCAL=1.0, TELESCOP="CHANDRA", INSTRUME="ACIS", RESPFILE="none")  # fmt: skip
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path / "pha2.fits")
    for key in ORDERS:
        name = f"{'hm'[key[0] - 1]}eg_{key[1]}"
        write_tables(
            path / f"{name}.rmf", matrix_table(EDGES, matrix(key), step=1 if key[0] == 1 else -1), bounds_table()
        )
        write_arf(path / f"{name}.arf", Arf(EDGES, AREAS[key]))
        if key[1] == 1:
            decreasing(path / f"{name}.arf", "SPECRESP")
    return path, counts, up + down


def names(path):
    return {"rmf": str(path / "{arm}_{order}.rmf"), "arf": str(path / "{arm}_{order}.arf")}


def test_every_order_has_its_response_and_its_background(folder):
    path, counts, background = folder
    spectra = read_spectra(path / "pha2.fits", **names(path))
    assert [s.name for s in spectra] == [f"pha2.fits{{{arm} {m}}}" for arm in ("HEG", "MEG") for m in ("-1", "+1")]
    for row, (spectrum, order) in enumerate(zip(spectra, ORDERS, strict=True)):
        np.testing.assert_array_equal(spectrum.counts, counts[row])
        np.testing.assert_array_equal(spectrum.background.counts, background[row])
        np.testing.assert_allclose(spectrum.background_ratio, sum(SCALES))
        assert spectrum.error is None  # whole counts are Poisson, whatever STAT_ERR and POISSERR
        np.testing.assert_allclose(EXPOSURE * spectrum.response.fold(photons()), expected(order), rtol=1e-12)
    assert read_spectra(path / "pha2.fits", background="none", **names(path))[0].background is None


def test_orders_are_selected_by_name(folder):
    path, counts, _ = folder
    rows = read_spectra(f"{path}/pha2.fits{{MEG -1, heg+1,4}}", **names(path))
    assert [str(s.order) for s in rows] == ["MEG -1", "HEG +1", "MEG +1"]
    np.testing.assert_array_equal([s.counts for s in rows], counts[[2, 1, 3]])
    with pytest.raises(DataError, match=r"expected one spectrum of LEG -1; found HEG -1, HEG \+1, MEG -1, MEG \+1"):
        selected_rows(f"{path}/pha2.fits{{LEG -1}}")
    with pytest.raises(DataError, match="expected a spectrum number from 1 to 4; found number 5"):
        read_spectra(f"{path}/pha2.fits{{1, 5}}")
    write_row(path, counts[0])
    assert file_name("{ARM}{order}", rows[1].order, "") == "HEG1"
    with pytest.raises(DataError, match="expected a grating spectrum with TG_PART and TG_M, for the file"):
        read_spectra(path / "plain.pha", rmf="{arm}.rmf")


def write_row(path, counts):
    """A spectrum of type I without orders."""
    columns = [fits.Column("CHANNEL", "I", array=np.arange(1, NUM + 1)), fits.Column("COUNTS", "I", array=counts)]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    table.header.update(EXPOSURE=EXPOSURE, POISSERR=True)
    table.writeto(path / "plain.pha", overwrite=True)


@pytest.mark.long
def test_orders_are_fitted_jointly_and_simulated(folder):
    path, _, _ = folder
    options = {"grouping": "none", "energies": None, "background": "none", **names(path)}
    stack = read_grouped_spectra(path / "pha2.fits", **options)
    model = SpectralFit("po")
    values = {"photon_index": 1.6, "log10_amplitude": np.log10(0.3)}
    np.testing.assert_allclose(model.expected(stack, values), [expected(order) for order in ORDERS], rtol=1e-5)
    observed = np.asarray(stack.counts)

    def minus_log_likelihood(x):
        total = np.array([expected(order, photon_index=x[0], norm=10 ** x[1]) for order in ORDERS])
        return -(observed * np.log(total) - total - gammaln(observed + 1)).sum()

    plain = optimize.minimize(
        minus_log_likelihood, [1.6, -0.5], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-9}
    )
    best = best_fit(model, stack, num_starts=2, num_simulations=20)
    assert best.likelihood.log_likelihood == pytest.approx(-plain.fun, abs=1e-4)
    table = best.likelihood.table
    assert (np.abs(table["value"].to_numpy() - plain.x) < 1e-2 * table["std"].to_numpy()).all()
    drawn, _ = model.simulate(3, stack, values)
    total = np.sum([expected(order) for order in ORDERS], axis=1)
    assert (np.abs(np.asarray(drawn.counts).sum(axis=1) - total) < 5 * np.sqrt(total)).all()
    assert not np.array_equal(drawn.counts, observed)


def test_responses_of_overlapping_orders_are_added(folder):
    path, _, _ = folder
    rmf, arf = (f"{path}/meg_1.{kind} + {path}/heg_1.{kind}" for kind in ("rmf", "arf"))
    both = read_spectra(f"{path}/pha2.fits{{MEG -1, MEG 1}}", rmf=rmf, arf=arf)
    total = expected((2, 1)) + expected((1, 1))
    np.testing.assert_allclose(EXPOSURE * both[0].response.fold(photons()), total, rtol=1e-12)
    assert both[0].response.rmf is both[1].response.rmf
    with pytest.raises(DataError, match="expected an ARF for each of 2 response files that are added; found 1"):
        read_spectra(f"{path}/pha2.fits{{4}}", rmf=rmf, arf=f"{path}/meg_1.arf")
    coarse = Rmf(EDGES, rmf_of((1, 1)).matrix, np.arange(NUM), E_MIN, E_MAX)
    with pytest.raises(DataError, match="expected the channels of"):
        summed_response([both[0].response, Response.of(coarse)])


def test_rows_use_their_own_matrix_and_area_in_one_file(folder, tmp_path):
    path, _, _ = folder
    matrices = [matrix_table(EDGES, matrix(order), "SPECRESP MATRIX") for order in ORDERS]
    write_tables(tmp_path / "all.rmf", bounds_table(), *matrices)
    areas = []
    for order in ORDERS:
        columns = zip(("ENERG_LO", "ENERG_HI", "SPECRESP"), (EDGES[:-1], EDGES[1:], AREAS[order]), strict=True)
        columns = [fits.Column(name, "D", array=values) for name, values in columns]
        areas.append(fits.BinTableHDU.from_columns(columns, name="SPECRESP"))
    write_tables(tmp_path / "all.arf", *areas)
    spectra = read_spectra(path / "pha2.fits", rmf=tmp_path / "all.rmf", arf=tmp_path / "all.arf")
    for spectrum, order in zip(spectra, ORDERS, strict=True):
        np.testing.assert_allclose(EXPOSURE * spectrum.response.fold(photons()), expected(order), rtol=1e-12)
    with pytest.raises(DataError, match="expected an area number from 1 to 4; found number 5"):
        read_arf(tmp_path / "all.arf", 5)


def test_an_area_on_the_bins_of_one_part_of_a_split_response(tmp_path):
    coarse_edges = np.geomspace(EDGES[0], EDGES[-1], 8)
    redistribution = np.full((7, NUM), 0.1 / NUM)
    parts = matrix_table(EDGES, matrix((1, 1))), matrix_table(coarse_edges, redistribution)
    write_tables(tmp_path / "split.rmf", *parts, bounds_table())
    rmf, arf = read_rmf(tmp_path / "split.rmf"), Arf(EDGES, AREAS[1, 1])
    assert rmf.split
    assert len(rmf.energy) > NUM + 1
    response = Response.of(rmf, arf)
    # The sum over both parts: photons of each bin of the union, times the area, in the channels of each part.
    middle = 0.5 * (rmf.energy[1:] + rmf.energy[:-1])
    fine_row, coarse_row = (np.searchsorted(edges, middle) - 1 for edges in (EDGES, coarse_edges))
    incident = photons(rmf.energy) * AREAS[1, 1][fine_row]
    np.testing.assert_allclose(
        response.fold(photons(rmf.energy)),
        incident @ (matrix((1, 1))[fine_row] + redistribution[coarse_row]),
        rtol=1e-6,
    )
    with pytest.raises(DataError, match="expected an effective area at all energies of"):
        Response.of(rmf, Arf(EDGES[5:], AREAS[1, 1][5:]))
    with pytest.raises(DataError, match="in bins whose edges are also edges of the matrix"):
        Response.of(rmf, Arf(EDGES[::2] * 1.01, AREAS[1, 1][:20]))
