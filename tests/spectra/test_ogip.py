"""OGIP files read: the numbers of published ones, folding against a plain sum, and every way to write a header."""

import numpy as np
import pytest
from astropy.io import fits
from small_ogip import small_spectrum

from hbm_jax.spectra.ogip.pha import read_pha, read_spectra, read_spectrum
from hbm_jax.spectra.ogip.responses import read_arf, read_rmf
from hbm_jax.spectra.ogip.writing import write_pha
from hbm_jax.validation import DataError

SWIFT_RMF = "xray/swift_xrt_response/swxpc0to12s6_20130101v014.rmf.gz"
JOINT = "xray/chandra_gcs25_joint/"
GBM = "grb/synth_gbm/"

# From the table of the data's README: counts, exposure, channels, first channel, groups, counts of the background.
PUBLISHED = {
    "xray/swift_xrt_grb050401/apc.pi": (963, 33618.02, 1024, 0, 642, 4159),
    "xray/swift_xrt_grb070110/interval0pc.pi": (2751, 9504.67, 1024, 0, 589, 286),
    "xray/swift_xrt_2m0259/target_sr.pha": (58, 4812.267, 1024, 0, 0, None),
    "xray/chandra_3c273/3c273.pi": (736, 38564.609, 1024, 1, 46, 216),
    JOINT + "pi2278.fits": (78, 11619.08, 685, 1, 9, None),
    JOINT + "pi2286.fits": (78, 11619.08, 685, 1, 9, None),
    "xray/chandra_cdfs179/179.pi": (2830, 3746510, 1024, 1, 0, 19068),
    "xray/xmm_pn_absorbed/pn_pi_src_bin10.ds": (4784, 11754.644, 4096, 0, 410, None),
    "xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits": (11526, 20265.981, 4096, 0, 1230, 1213),
}
# Where the header names no response, or one that is not here.
OPTIONS = {
    "xray/swift_xrt_grb050401/apc.pi": {"rmf": SWIFT_RMF},
    "xray/swift_xrt_grb070110/interval0pc.pi": {"rmf": SWIFT_RMF},
    "xray/swift_xrt_2m0259/target_sr.pha": {"rmf": SWIFT_RMF, "arf": "xray/swift_xrt_2m0259/target_sr.arf"},
    JOINT + "pi2278.fits": {"rmf": JOINT + "rmf2278.fits", "arf": JOINT + "arf2278.fits"},
    JOINT + "pi2286.fits": {"rmf": JOINT + "rmf2286.fits", "arf": JOINT + "arf2286.fits"},
    "xray/xmm_pn_absorbed/pn_pi_src_bin10.ds": {"rmf": "xray/xmm_pn_absorbed/epn_ff20_dY9.rmf", "background": "none"},
}
# Name of the extension, photon energies, channels, first channel.
MATRICES = {
    SWIFT_RMF: ("MATRIX", 2400, 1024, 0),
    "xray/chandra_3c273/3c273.rmf": ("MATRIX", 1090, 1024, 1),
    JOINT + "rmf2278.fits": ("SPECRESP MATRIX", 410, 685, 1),
    JOINT + "rmf2286.fits": ("SPECRESP MATRIX", 410, 685, 1),
    "xray/chandra_cdfs179/cdfs4Ms_179.rmf": ("MATRIX", 1918, 1024, 1),
    "xray/xmm_pn_absorbed/epn_ff20_dY9.rmf": ("SPECRESP MATRIX", 1319, 4096, 0),
    "xray/xmm_ngc7793_ulx4/PN.rmf": ("MATRIX", 2067, 4096, 0),
}


def observed(shared_data, name):
    options = {key: v if v == "none" else shared_data(v) for key, v in OPTIONS.get(name, {}).items()}
    return read_spectrum(shared_data(name), **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_spectra_have_the_published_numbers(shared_data, name):
    counts, exposure, num, first, num_groups, background = PUBLISHED[name]
    # Responses are read in other tests: the large ones take a while.
    spectrum = read_spectrum(
        shared_data(name), rmf="none", arf="none", **({} if background else {"background": "none"})
    )
    assert spectrum.counts.sum() == counts
    assert spectrum.exposure == pytest.approx(exposure, rel=2e-7)
    assert (len(spectrum), spectrum.channels[0], spectrum.channels[-1]) == (num, first, first + num - 1)
    assert (spectrum.grouping == 1).sum() == num_groups
    assert spectrum.error is None
    assert (None if spectrum.background is None else spectrum.background.counts.sum()) == background
    assert spectrum.response is None


@pytest.mark.filterwarnings("ignore:.*epn_ff20_dY9.rmf.*50106 negative elements")
@pytest.mark.parametrize("name", MATRICES)
def test_matrices_have_the_published_sizes(shared_data, name):
    extension, num_energies, num, first = MATRICES[name]
    rmf = read_rmf(shared_data(name))
    assert rmf.name.endswith(f"[{extension}]")
    assert rmf.matrix.shape == (num_energies, num)
    assert (rmf.channels[0], rmf.channels[-1]) == (first, first + num - 1)
    assert rmf.energy[0] > 0
    assert (np.diff(rmf.energy) > 0).all()
    # Of each photon one count at most, but for the interpolation of calibration files.
    assert rmf.matrix.sum(axis=1).max() < 1.03
    assert rmf.matrix.min() >= 0
    assert bool(rmf.warnings) == name.endswith("epn_ff20_dY9.rmf")


def test_scales_of_source_and_background(shared_data):
    def scales(name):
        s = read_spectrum(shared_data(name), rmf="none", arf="none")
        return s, s.backscal, s.background.backscal

    for name, source, behind, rel in (
        ("xray/swift_xrt_grb050401/apc.pi", 0.002171419, 0.0714956580, 1e-9),
        ("xray/swift_xrt_grb070110/interval0pc.pi", 0.001804759, 0.0324985151, 1e-8),
        ("xray/chandra_3c273/3c273.pi", 2.5264e-6, 1.87254e-5, 2e-5),
        ("xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits", 2010100, 6866200, 0),
    ):
        spectrum, of_source, of_background = scales(name)
        assert of_source.shape == of_background.shape == spectrum.counts.shape
        np.testing.assert_allclose(of_source, source, rtol=rel)
        np.testing.assert_allclose(of_background, behind, rtol=rel)
        times = spectrum.background.exposure / spectrum.exposure
        np.testing.assert_allclose(spectrum.background_ratio, behind / source * times, rtol=2e-5)
        assert (spectrum.areascal == 1).all()
        assert (spectrum.background.areascal == 1).all()
    spectrum, *_ = scales("xray/swift_xrt_grb070110/interval0pc.pi")
    assert spectrum.background.exposure == pytest.approx(9569.60, rel=1e-6)
    spectrum, *_ = scales("xray/chandra_cdfs179/179.pi")
    assert (spectrum.areascal == 1).all()
    np.testing.assert_allclose(spectrum.background.areascal, 32.4418, rtol=1e-12)
    np.testing.assert_allclose(spectrum.background_ratio, 32.4418, rtol=1e-12)


def test_bad_channels_of_the_files(shared_data):
    def bad(name):
        flags = read_pha(shared_data(name))[0].quality
        return {int(value): int((flags == value).sum()) for value in np.unique(flags)}

    assert bad("xray/swift_xrt_grb050401/apc.pi") == {0: 743, 2: 251, 5: 30}
    assert bad("xray/chandra_gcs25_joint/pi2278.fits") == {0: 382, 2: 303}
    assert bad("xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits") == {0: 2980, 1: 1116}
    assert bad("xray/swift_xrt_2m0259/target_sr.pha") == {0: 1024}


def test_statistical_errors_of_chandra_counts_are_not_used(shared_data):
    path = shared_data("xray/chandra_3c273/3c273.pi")
    with fits.open(path) as hdus:
        assert hdus["SPECTRUM"].header["POISSERR"] is False
        assert hdus["SPECTRUM"].data["STAT_ERR"].max() > 0
    spectrum = read_spectrum(path, rmf="none", arf="none")
    assert spectrum.error is None
    assert spectrum.background.error is None


def test_a_first_energy_of_zero_is_replaced(shared_data):
    path = shared_data(SWIFT_RMF)
    with fits.open(path) as hdus:
        assert hdus["MATRIX"].data["ENERG_LO"][0] == 0
    rmf = read_rmf(path)
    assert rmf.energy[0] == pytest.approx(5e-6)
    arf = read_arf(shared_data("xray/swift_xrt_grb050401/apc.arf"))
    np.testing.assert_allclose(arf.energy, rmf.energy, rtol=1e-6)


def test_missing_responses_and_backgrounds_are_errors_that_say_what_to_do(shared_data):
    for name, missing, options in (
        ("xray/swift_xrt_grb050401/apc.pi", r"RESPFILE.*'apc\.rmf'.*rmf=PATH.*rmf='none'", {}),
        ("xray/swift_xrt_grb070110/interval0pc.pi", r"RESPFILE.*'interval0pc\.rmf'.*rmf=PATH", {}),
        ("xray/xmm_pn_absorbed/pn_pi_src_bin10.ds", r"BACKFILE.*pn_pi_bgd\.ds.*background=PATH", {}),
        ("xray/xmm_pn_absorbed/pn_pi_src_bin10.ds", r"RESPFILE.*epn_ff20_sdY9\.rmf.*rmf=PATH", {"background": "none"}),
    ):
        with pytest.raises(DataError, match=missing) as caught:
            read_spectrum(shared_data(name), **options)
        assert str(shared_data(name)) in str(caught.value)


def dense(matrix_hdu, channels, first):
    """Matrix of a file by a loop of its own, in single rows, straight from the columns."""
    full = np.zeros((len(matrix_hdu.data), len(channels)))
    for row, record in enumerate(matrix_hdu.data):
        values, at = np.atleast_1d(record["MATRIX"]), 0
        starts, widths = np.atleast_1d(record["F_CHAN"]), np.atleast_1d(record["N_CHAN"])
        for k in range(int(record["N_GRP"])):
            start, width = int(starts[k]) - first, int(widths[k])
            full[row, start : start + width] += values[at : at + width]
            at += width
    return full


@pytest.mark.parametrize(
    "name",
    [
        "xray/swift_xrt_grb070110/interval0pc.pi",
        "xray/chandra_3c273/3c273.pi",
        "xray/xmm_ngc7793_ulx4/PN_spectrum_grp20.fits",
        GBM + "n1.pha{4}",
    ],
)
def test_folded_counts_are_a_plain_sum_over_the_file(shared_data, name):
    folder = name.rpartition("/")[0]
    if "gbm" in name:
        spectrum = read_spectrum(f"{shared_data(folder)}/n1.pha{{4}}")
        rmf, arf, which = shared_data(GBM + "n1.rsp"), None, 4
    else:
        spectrum = observed(shared_data, name)
        rmf = shared_data(OPTIONS[name]["rmf"] if name in OPTIONS else f"{folder}/{spectrum.files['RESPFILE']}")
        arf, which = shared_data(f"{folder}/{spectrum.files['ANCRFILE']}"), 1
    with fits.open(rmf) as hdus:
        hdu = [h for h in hdus if h.name in ("MATRIX", "SPECRESP MATRIX")][which - 1]
        place = hdu.columns.names.index("F_CHAN") + 1
        matrix = dense(hdu, hdus["EBOUNDS"].data["CHANNEL"], hdu.header[f"TLMIN{place}"])
        low, high = hdu.data["ENERG_LO"].astype(float), hdu.data["ENERG_HI"].astype(float)
    area = np.ones(len(low))
    if arf is not None:
        with fits.open(arf) as hdus:
            area = hdus["SPECRESP"].data["SPECRESP"].astype(float)
    low[0] = max(low[0], 1e-3 * high[0])
    photons = (low**-0.7 - high**-0.7) / 0.7
    expected = (photons * area) @ matrix
    edges = spectrum.response.energy
    found = spectrum.response.fold((edges[:-1] ** -0.7 - edges[1:] ** -0.7) / 0.7)
    assert expected.max() > 0
    # Files hold both edges of each bin, in single precision; the response has the lower ones of them.
    assert np.abs(edges[1:-1] / low[spectrum.response.rows][1:] - 1).max() < 1e-15
    exact = (edges[:-1] ** -0.7 - edges[1:] ** -0.7) / 0.7
    np.testing.assert_allclose(
        found, (exact * area[spectrum.response.rows]) @ matrix[spectrum.response.rows], rtol=1e-10
    )
    np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_bursts_of_type_ii_are_read_row_by_row(shared_data):
    path = shared_data(GBM + "n1.pha")
    spectra = read_spectra(path)
    assert [s.name for s in spectra] == [f"n1.pha{{{i}}}" for i in range(1, 10)]
    with fits.open(path) as hdus, fits.open(shared_data(GBM + "n1_bak.pha")) as behind:
        source, background = hdus["SPECTRUM"].data, behind["SPECTRUM"].data
        for row, spectrum in enumerate(spectra):
            exposure = float(source["EXPOSURE"][row])
            assert spectrum.exposure == exposure
            expected = source["RATE"][row].astype(float) * exposure
            np.testing.assert_allclose(spectrum.counts, expected, atol=1e-3)
            assert (spectrum.counts % 1 == 0).all()
            assert spectrum.error is None
            at = float(background["EXPOSURE"][row])
            np.testing.assert_allclose(spectrum.background.counts, background["RATE"][row].astype(float) * at)
            np.testing.assert_allclose(spectrum.background.error, background["STAT_ERR"][row].astype(float) * at)
            assert spectrum.response.matrix.shape[1] == 128
    assert [s.response.rmf.name[-3:] for s in spectra] == [f", {i}]"[-3:] for i in range(1, 10)]
    # One alone is that of the list.
    one = read_spectrum(f"{path}{{9}}", background=shared_data(GBM + "n1_bak.pha"), rmf=shared_data(GBM + "n1.rsp"))
    np.testing.assert_array_equal(one.counts, spectra[8].counts)
    np.testing.assert_array_equal(one.background.counts, spectra[8].background.counts)
    assert (one.response.matrix != spectra[8].response.matrix).nnz == 0
    assert one.response.rmf.name.endswith(", 9]")
    (alone,) = read_spectra(f"{path}{{9}}")
    assert (alone.name, alone.background.name) == ("n1.pha{9}", "n1_bak.pha{9}")


def test_which_of_several_is_never_guessed(shared_data, tmp_path):
    with pytest.raises(DataError, match=r"expected one spectrum; found 9 .*n1\.pha\{1\}.*read_spectra"):
        read_spectrum(shared_data(GBM + "n1.pha"))
    with pytest.raises(DataError, match="number from 1 to 9; found number 10"):
        read_spectrum(f"{shared_data(GBM + 'n1.pha')}{{10}}")
    path = write_pha(tmp_path / "one.pha", small_spectrum())
    with pytest.raises(DataError, match=r"found 9 matrices.*n1\.rsp\{1\}"):
        read_spectrum(path, rmf=shared_data(GBM + "n1.rsp"))
    with pytest.raises(DataError, match=r"found 9 spectra.*n1\.pha\{1\}"):
        read_spectrum(path, background=shared_data(GBM + "n1.pha"))
    with pytest.raises(DataError, match=r"expected the channels 3 to 14 of .*; found 1 to 128"):
        read_spectrum(path, rmf=f"{shared_data(GBM + 'n1.rsp')}{{2}}")


def test_where_files_that_headers_name_are_looked_for(tmp_path):
    (tmp_path / "sub").mkdir()
    behind = small_spectrum(seed=5)

    def counts(named):
        write_pha(tmp_path / "a.pha", small_spectrum(), background=named, overwrite=True)
        return read_spectrum(tmp_path / "a.pha").background.counts

    write_pha(tmp_path / "b.pha", behind)
    for named in ("b.pha", "/no/such/folder/b.pha", "elsewhere/b.pha", "b.pha[SPECTRUM]", str(tmp_path / "b.pha")):
        np.testing.assert_array_equal(counts(named), behind.counts)
    write_pha(tmp_path / "sub" / "b.pha", small_spectrum(seed=6))
    np.testing.assert_array_equal(counts("sub/b.pha"), small_spectrum(seed=6).counts)
    for named in ("none", "NONE", " "):
        write_pha(tmp_path / "a.pha", small_spectrum(), background=named, overwrite=True)
        assert read_spectrum(tmp_path / "a.pha").background is None
    with pytest.raises(DataError, match=r"a\.pha, BACKFILE: .*background=PATH.*background='none'"):
        counts("c.pha")
    with pytest.raises(DataError, match=r"c\.pha: expected a FITS file; found no such file"):
        read_spectrum(tmp_path / "a.pha", background=tmp_path / "c.pha")
    with pytest.raises(DataError, match="found a folder"):
        read_pha(tmp_path)


def table(name, columns, **keywords):
    hdu = fits.BinTableHDU.from_columns([fits.Column(n, f, array=a) for n, f, a in columns], name=name)
    hdu.header.update(keywords)
    return hdu


def written(path, *tables):
    fits.HDUList([fits.PrimaryHDU(), *tables]).writeto(path, overwrite=True)
    return path


def test_rates_errors_and_scales_as_headers_give_them(tmp_path):
    path, channel = tmp_path / "a.pha", ("CHANNEL", "I", [1, 2, 3])
    counts = np.array([2.0, 0.0, 7.0])

    def read(columns, **keywords):
        (found,) = read_pha(written(path, table("SPECTRUM", [channel, *columns], EXPOSURE=10.0, **keywords)))
        return found

    rate = ("RATE", "E", counts / 10)
    error = ("STAT_ERR", "E", [0.125, 0.25, 0.5])
    np.testing.assert_array_equal(read([rate]).counts, counts)
    assert read([rate], POISSERR=True).error is None
    assert read([rate, error], POISSERR=True).error is None
    assert read([rate, error]).error is None
    np.testing.assert_allclose(read([rate, error], POISSERR=False).error, [1.25, 2.5, 5.0])
    np.testing.assert_allclose(read([rate], POISSERR=False, STAT_ERR=0.5).error, 5.0)
    part = ("RATE", "D", counts / 10 + 0.025)
    np.testing.assert_allclose(read([part], POISSERR=True).counts, counts + 0.25)
    with pytest.raises(DataError, match="POISSERR = T, or errors in STAT_ERR"):
        read([part], POISSERR=False)
    found = read([("COUNTS", "J", counts), ("QUALITY", "I", [0, 1, 2])], GROUPING=1, BACKSCAL="0.25", AREASCAL=2)
    np.testing.assert_array_equal(found.quality, [0, 1, 2])
    np.testing.assert_array_equal(found.grouping, [1, 1, 1])
    np.testing.assert_array_equal(found.backscal, [0.25] * 3)
    np.testing.assert_array_equal(found.areascal, [2.0] * 3)
    found = read([("counts", "D", counts), ("BACKSCAL", "D", [0.1, 0.2, 0.3])], QUALITY=3)
    np.testing.assert_array_equal(found.quality, [3, 3, 3])
    np.testing.assert_array_equal(found.backscal, [0.1, 0.2, 0.3])
    (found,) = read_pha(written(path, table("SPECTRUM", [("COUNTS", "J", counts)], EXPOSURE=1.0)))
    np.testing.assert_array_equal(found.channels, [1, 2, 3])
    # By class, where the name is another.
    (found,) = read_pha(written(path, table("OTHER", [("COUNTS", "J", counts)], EXPOSURE=1.0, HDUCLAS1="SPECTRUM")))
    np.testing.assert_array_equal(found.counts, counts)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("tlmin", [True, False])
@pytest.mark.parametrize("kind", ["fixed", "variable", "scalar"])
def test_every_way_to_write_a_matrix(tmp_path, first, tlmin, kind):
    expected = np.array([[0, 0, 0, 0], [0.25, 0.5, 0, 0.25], [0, 0.5, 0.5, 0], [0, 0, 0, 0.75]])
    if kind == "scalar":  # one group a row, as GBM and Swift have
        expected[1] = [0.25, 0.5, 0.25, 0]
    starts = [[], [0, 3], [1], [3]] if kind != "scalar" else [[], [0], [1], [3]]
    widths = [[], [2, 1], [2], [1]] if kind != "scalar" else [[], [3], [2], [1]]
    values = [row[row > 0] for row in expected]
    groups = [len(s) for s in starts]
    starts = [[s + first for s in row] for row in starts]

    def padded(rows, num, fill):
        return np.array([list(row) + [fill] * (num - len(row)) for row in rows])

    if kind == "variable":
        columns = []
        for name, form, rows in (("F_CHAN", "PI", starts), ("N_CHAN", "PI", widths), ("MATRIX", "PE", values)):
            array = np.empty(4, object)
            array[:] = [np.array(row) for row in rows]
            columns.append((name, form, array))
    elif kind == "fixed":
        columns = [
            ("F_CHAN", "3I", padded(starts, 3, 0)),
            ("N_CHAN", "3I", padded(widths, 3, 0)),
            ("MATRIX", "4E", padded(values, 4, 9.0)),
        ]
    else:
        columns = [
            ("F_CHAN", "I", padded(starts, 1, 0)[:, 0]),
            ("N_CHAN", "I", padded(widths, 1, 0)[:, 0]),
            ("MATRIX", "4E", padded(values, 4, 9.0)),
        ]
    edges = np.array([0.0, 0.0, 1.0, 2.0, 3.0])  # the first bin has no width
    energy = [("ENERG_LO", "E", edges[:-1]), ("ENERG_HI", "E", edges[1:]), ("N_GRP", "I", groups)]
    matrix = table("SPECRESP MATRIX", energy + columns, **({"TLMIN4": first} if tlmin else {}))
    bounds = [
        ("CHANNEL", "J", np.arange(first, first + 4)),
        ("E_MIN", "E", np.arange(4)),
        ("E_MAX", "E", np.arange(1, 5)),
    ]
    path = written(tmp_path / "a.rmf", table("EBOUNDS", bounds), matrix)
    rmf = read_rmf(path)
    np.testing.assert_array_equal(rmf.matrix.toarray(), expected)
    np.testing.assert_array_equal(rmf.channels, np.arange(first, first + 4))
    np.testing.assert_allclose(rmf.energy, [1e-3, 1e-3, 1.0, 2.0, 3.0])


def test_energies_in_other_units(tmp_path):
    edges = np.array([100.0, 200.0, 400.0])
    for unit, factor in (("eV", 1e-3), ("MeV", 1e3), ("keV", 1.0)):
        hdu = table(
            "SPECRESP", [("ENERG_LO", "D", edges[:-1]), ("ENERG_HI", "D", edges[1:]), ("SPECRESP", "D", [1, 2])]
        )
        hdu.columns["ENERG_LO"].unit = hdu.columns["ENERG_HI"].unit = unit
        np.testing.assert_allclose(read_arf(written(tmp_path / "a.arf", hdu)).energy, edges * factor)
    hdu.columns["ENERG_LO"].unit = "Angstrom"
    with pytest.raises(
        DataError, match="ENERG_LO: expected energies in eV, keV, MeV or GeV; found the unit 'Angstrom'"
    ):
        read_arf(written(tmp_path / "a.arf", hdu))


def test_what_is_not_used_is_said(tmp_path):
    path = tmp_path / "a.pha"
    write_pha(path, small_spectrum())
    for key, value, words in (
        ("SYS_ERR", 0.03, "SYS_ERR: systematic errors of 12 channels are used only by chi-square"),
        ("CORRFILE", "c.pha", "'c.pha' is not"),
    ):
        with fits.open(path) as hdus:
            hdus["SPECTRUM"].header[key] = value
            hdus.writeto(tmp_path / f"{key}.pha")
        with pytest.warns(UserWarning, match=words) as seen:
            read_pha(tmp_path / f"{key}.pha")
        assert len(seen) == 1
