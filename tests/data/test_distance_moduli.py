"""Distance-level samples: the files in which they are published, what is refused, and downloads without a network."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

import hbm_jax as hbm
from hbm_jax.data import (
    DataError,
    DataWarning,
    DistanceModuli,
    DownloadError,
    GaussianConstraints,
    desi2024_bao,
    fetch_distance_moduli,
    load_constraints,
    load_distance_moduli,
    planck2018_distance_priors,
    read_constraints,
    read_distance_moduli,
)
from hbm_jax.data.supernovae import downloads
from hbm_jax.data.supernovae.dense_covariance import read_covariance
from hbm_jax.models import HubbleDiagram

RNG = np.random.default_rng(3)


def columns(num=5):
    root = RNG.normal(size=(num, num))
    return {
        "name": [f"sn{i}" for i in range(num)], "survey": ["a", "b"] * (num // 2) + ["a"] * (num % 2),
        "z_cmb": np.linspace(0.1, 1.0, num), "z_hel": np.linspace(0.1, 1.0, num) + 1e-3,
        "mu": np.linspace(38.0, 44.0, num), "covariance": 0.01 * (root @ root.T + np.eye(num)),
        "mu_calibrator": np.where(np.arange(num) < 2, 38.0, np.nan),
    }  # fmt: skip


def systematic(num, seed=1, size=0.02):
    """Made-up systematic covariance."""
    modes = size * np.random.default_rng(seed).normal(size=(num, 4))
    return modes @ modes.T


def as_text(matrix, path, *, leading=True):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as file:
        if leading:
            file.write(f"{len(matrix)}\n")
        file.write("".join(f"{value:.12g}\n" for value in matrix.ravel().tolist()))
    return str(path)


def test_container_comes_back(tmp_path):
    data = DistanceModuli.from_columns(columns(), covariates={"x1": [0.1, np.nan, 0.3, 0.4, 0.5]})
    data.to_table().write(tmp_path / "sample.ecsv")
    for again in (DistanceModuli.from_dict(data.to_dict()), read_distance_moduli(tmp_path / "sample.ecsv")):
        assert again.name == data.name
        assert again.survey == data.survey
        assert again.quantity == "mu"
        for key in ("z_cmb", "z_hel", "mu", "covariance", "mu_calibrator"):
            np.testing.assert_array_equal(getattr(again, key), getattr(data, key))
        np.testing.assert_array_equal(again.covariates["x1"], data.covariates["x1"])
    assert "2 are calibrators" in data.describe()
    some = data.subset([3, 1])
    np.testing.assert_array_equal(some.covariance, data.covariance[np.ix_([3, 1], [3, 1])])
    assert some.name == ("sn3", "sn1")
    assert set(data.without_survey("a").survey) == {"b"}
    assert not data.covariance.flags.writeable
    with pytest.raises(DataError, match="survey: expected one of a, b; found 'c'"):
        data.without_survey("c")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"covariance": np.eye(4)}, ["covariance", "(5, 5)", "(4, 4)"]),
        ({"covariance": np.eye(5) + np.tri(5, k=-1)}, ["symmetric", "sn", "at ("]),
        ({"covariance": np.ones((5, 5))}, ["positive definite 5 x 5", "correlation matrix", "dominated by sn"]),
        ({"covariance": np.diag([1, 1, -1, 1, 1.0])}, ["diagonal", "row 2 (sn2)", "above 0"]),
        ({"covariance": np.full((5, 5), np.nan)}, ["covariance", "finite"]),
        ({"z_cmb": [0.1, 0.2, 0.0, 0.4, 0.5]}, ["z_cmb", "row 2 (sn2)", "between 0 and 20"]),
        ({"mu": [1, 2, 3, np.inf, 5]}, ["mu", "row 3 (sn3)", "finite"]),
        ({"mu": [1, 2, 3]}, ["different length", "mu 3"]),
        ({"sigma": np.ones(5)}, ["'sigma' and 'covariance'", "both"]),
        ({"m_b_corr": np.ones(5)}, ["'mu' and 'm_b_corr'", "both"]),
        ({"muu": np.ones(5)}, ["unknown column 'muu'", "did you mean 'mu'"]),
    ],
)
def test_bad_samples(change, words):
    with pytest.raises(DataError) as error:
        DistanceModuli.from_columns(columns() | change)
    for word in words:
        assert word in str(error.value)


@pytest.fixture(scope="module")
def without_distances(shared_data):
    """Pantheon+ and SH0ES as a table of one's own, with -1 for the distance of all that are no calibrators."""
    table = Table.read(shared_data("supernovae/pantheon_plus_sh0es.dat"), format="ascii")
    calibrates = table["IS_CALIBRATOR"] == 1
    table["CEPH_DIST"][~calibrates] = -1.0
    table = table[(table["zHD"] > 0.01) | calibrates]
    del table["IS_CALIBRATOR"]
    names = {"name": "CID", "survey": "IDSURVEY", "z_cmb": "zHD", "z_hel": "zHEL", "m_b_corr": "m_b_corr"}
    return table, {"columns": names | {"sigma": "m_b_corr_err_DIAG", "mu_calibrator": "CEPH_DIST"}}


def test_a_distance_of_minus_one_is_refused_or_missing(shared_data, without_distances):
    table, options = without_distances
    message = r"CEPH_DIST, row \d+ \(2013E\): .* missing=-1\), found -1.0 \(1580 such rows of 1657\)"
    with pytest.raises(DataError, match=message):
        read_distance_moduli(table, **options)
    with pytest.warns(DataWarning, match="in the table more than once"):
        data = read_distance_moduli(table, missing=(-1,), **options)
    path = shared_data("supernovae/pantheon_plus_sh0es.dat")
    with pytest.warns(DataWarning, match="in the table more than once"):
        same = read_distance_moduli(path, format="pantheon+", covariance="diagonal")
    assert data.name == same.name
    for key in ("z_cmb", "z_hel", "mu", "covariance", "mu_calibrator"):
        np.testing.assert_array_equal(getattr(data, key), getattr(same, key), err_msg=key)


@pytest.mark.long
def test_the_hubble_constant_of_calibrators_is_that_published(without_distances):
    """73.6 +- 1.1 and Om0 = 0.334 +- 0.018 (Brout et al. 2022) with all covariances, of which there is the diagonal."""
    table, options = without_distances
    with pytest.warns(DataWarning, match="in the table more than once"):
        data = read_distance_moduli(table, missing=(-1,), **options)
    model = HubbleDiagram(cosmology="lcdm", calibrated=True)
    table = hbm.maximum_likelihood(model, data, num_starts=2, errors="curvature").table
    for name, value, error in (("H0", 73.6, 1.1), ("Om0", 0.334, 0.018)):
        assert abs(table.loc[name, "value"] - value) < error
        assert error < table.loc[name, "std"] < 1.4 * error  # it has lost the correlations


def test_pantheon_plus(shared_data, tmp_path):
    path = shared_data("supernovae/pantheon_plus_sh0es.dat")
    lines = path.read_text().splitlines()
    header = lines[0].split()
    # A part of the release, with a covariance of its form: the whole one is not at hand.
    rows = [line.split() for line in lines[1:]]
    chosen = rows[:40] + rows[200:260]
    small = tmp_path / "part.dat"
    small.write_text("\n".join(" ".join(row) for row in [header, *chosen]) + "\n")
    sigma = np.array([float(row[header.index("m_b_corr_err_DIAG")]) for row in chosen])
    total = systematic(100) + np.diag(sigma**2)
    data = read_distance_moduli(small, format="pantheon+", covariance=as_text(total, tmp_path / "part.cov"))
    keep = [float(r[header.index("zHD")]) > 0.01 or r[header.index("IS_CALIBRATOR")] == "1" for r in chosen]
    assert len(data) == sum(keep) < 100
    np.testing.assert_allclose(data.covariance, total[np.ix_(keep, keep)], rtol=1e-9)
    assert data.quantity == "m_b_corr"
    assert data.is_calibrator.sum() == sum(r[header.index("IS_CALIBRATOR")] == "1" for r in chosen)
    assert float(data.mu_calibrator[0]) == 29.177
    assert {"LOSS1", "SOUSA"} <= set(data.survey)
    assert data.name[:2] == ("2011fe (LOSS1)", "2011fe (SOUSA)")
    assert set(data.covariates) == {"x1", "c", "log10_mass", "mw_ebv"}
    with pytest.warns(DataWarning, match=r"2011fe, .* are in the table more than once"):
        flow = read_distance_moduli(path, format="pantheon+", covariance="diagonal", calibrators=False)
    assert (len(flow), flow.is_calibrator.sum()) == (1590, 0)
    with pytest.warns(DataWarning, match="127 in all"):
        everything = read_distance_moduli(path, format="pantheon+", covariance="diagonal", z_min=0.0)
    assert (len(everything), everything.is_calibrator.sum()) == (1701, 77)
    with pytest.raises(DataError, match=r"covariance=<file> \(Pantheon\+SH0ES_STAT\+SYS\.cov of the release\)"):
        read_distance_moduli(path, format="pantheon+")
    with pytest.raises(DataError, match="100 x 100 numbers for 100 objects, with or without 100 before them; found 9"):
        read_distance_moduli(small, format="pantheon+", covariance=as_text(np.eye(3), tmp_path / "c", leading=False))
    covariance = as_text(systematic(100) + 1e-6 * np.eye(100), tmp_path / "d")
    with pytest.raises(DataError, match=r"expected a total covariance.*covariance_is='systematic'"):
        read_distance_moduli(small, format="pantheon+", covariance=covariance)


def test_half_a_matrix_is_one_of_numpy_only(tmp_path):
    np.savez(tmp_path / "half.npz", np.array([1.0, 0.5, 2.0]))
    np.testing.assert_array_equal(read_covariance(tmp_path / "half.npz", 2), [[1.0, 0.5], [0.5, 2.0]])
    (tmp_path / "half.txt").write_text("1.0 0.5 2.0\n")
    with pytest.raises(DataError, match=r"expected 2 x 2 numbers for 2 objects, .*; found 3, the first of them 1"):
        read_covariance(tmp_path / "half.txt", 2)
    np.savez(tmp_path / "half.npz", np.arange(1.0, 6.0))
    with pytest.raises(DataError, match="expected 2 x 2 numbers for 2 objects"):
        read_covariance(tmp_path / "half.npz", 2)


def test_des(shared_data, tmp_path):
    path = shared_data("supernovae/des_sn5yr_hd.csv")
    part = tmp_path / "hd.csv"
    part.write_text("\n".join(path.read_text().splitlines()[:61]) + "\n")
    extra = systematic(60)
    data = read_distance_moduli(part, format="des-sn5yr", covariance=as_text(extra, tmp_path / "STAT+SYS.txt.gz"))
    assert len(data) == 60
    assert set(data.survey) == {"DES"}
    assert data.covariance[0, 0] == pytest.approx(0.0968**2 + extra[0, 0], rel=1e-9)
    assert len(read_distance_moduli(path, format="des-sn5yr", covariance="diagonal")) == 1829

    dovekie = shared_data("supernovae/des_dovekie_hd.csv")
    part = tmp_path / "dovekie.csv"
    lines = dovekie.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("VARNAMES"))
    part.write_text("\n".join(lines[: start + 41]) + "\n")
    total = systematic(40) + np.diag(np.full(40, 0.15**2))
    precision = np.linalg.inv(total)
    np.savez(tmp_path / "STAT+SYS.npz", nsn=np.array([40]), cov=precision[np.triu_indices(40)])
    data = read_distance_moduli(part, format="des-dovekie", covariance=str(tmp_path / "STAT+SYS.npz"))
    assert data.name[0] == "Gaia16agf"
    assert data.survey[0] == "FOUNDATION"
    np.testing.assert_allclose(data.covariance, total, rtol=1e-9, atol=1e-12)
    assert len(read_distance_moduli(dovekie, format="snana")) == 1820
    with pytest.raises(DataError, match="one line 'VARNAMES"):
        read_distance_moduli(path, format="snana")


def test_binned_releases(shared_data, tmp_path):
    stored = np.load(shared_data("supernovae/union3_nodes22.npz"))
    image = np.zeros((23, 23))
    image[0, 1:], image[1:, 0], image[1:, 1:] = stored["z"], stored["mu"], stored["inv_cov"]
    fits.PrimaryHDU(image).writeto(tmp_path / "mu_mat.fits")
    data = read_distance_moduli(tmp_path / "mu_mat.fits", format="union3")
    np.testing.assert_allclose(data.covariance, stored["cov"], rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(data.mu, stored["mu"])

    stored = np.load(shared_data("supernovae/jla_binned31.npz"))
    rows = "\n".join(f"{z:.10g} {mu:.10g}" for z, mu in zip(stored["z"], stored["mu"], strict=True))
    (tmp_path / "jla_mub.txt").write_text(f"# zb mub\n{rows}\n")
    covariance = as_text(stored["cov"], tmp_path / "jla_mub_covmatrix.dat")
    data = read_distance_moduli(tmp_path / "jla_mub.txt", format="jla-binned", covariance=covariance)
    np.testing.assert_allclose(data.covariance, stored["cov"], rtol=1e-9)
    np.testing.assert_allclose(data.mu, stored["mu"], rtol=1e-9)


def test_older_releases(shared_data, tmp_path):
    path = shared_data("supernovae/pantheon2018_full.txt")
    extra = np.zeros((1048, 1048))
    rows = np.ix_([0, 1, 1000], [0, 1, 1000])
    extra[rows] = systematic(3)
    data = read_distance_moduli(path, format="pantheon2018", covariance=as_text(extra, tmp_path / "sys.txt"))
    assert len(data) == 1048
    assert data.quantity == "m_b_corr"
    assert data.covariance[0, 0] == pytest.approx(0.12605**2 + extra[0, 0], rel=1e-9)
    assert data.covariance[1000, 1] == pytest.approx(extra[1000, 1], rel=1e-9)
    path = shared_data("supernovae/union2p1_mu.txt")
    data = read_distance_moduli(path, format="union2.1", covariance="diagonal")
    assert len(data) == 580
    assert float(data.sigma[0]) == pytest.approx(0.223905932998, rel=1e-12)


def test_a_table_of_ones_own(tmp_path):
    table = {"zHD": [0.1, 0.5, 0.9], "MU": [38.3, 42.2, 43.9], "err": [0.1, 0.1, 0.2]}
    names = {"z_cmb": "zHD", "mu": "MU", "sigma": "err"}
    np.testing.assert_allclose(read_distance_moduli(table, columns=names).sigma, table["err"])
    with pytest.raises(DataError, match=r"columns 'z_cmb', 'mu' .* are missing.*found the columns zHD, MU, err"):
        read_distance_moduli(table)
    with pytest.raises(DataError, match=r"format: expected one of table.*did you mean 'pantheon\+'"):
        read_distance_moduli(tmp_path / "x", format="Pantheon+ ")
    with pytest.raises(FileNotFoundError, match="expected a table file"):
        read_distance_moduli(tmp_path / "x.dat", format="pantheon+")
    with pytest.raises(DataError, match="expected an object at a higher redshift; found none of 3 above 2"):
        read_distance_moduli(table, columns=names, z_min=2.0)
    with pytest.raises(FileNotFoundError, match="expected a covariance file"):
        read_covariance(tmp_path / "none.cov", 3)
    np.save(tmp_path / "c.npy", np.eye(3))
    np.testing.assert_array_equal(read_covariance(tmp_path / "c.npy", 3), np.eye(3))


def test_downloads(tmp_path, monkeypatch):
    pytest.importorskip("pooch")
    source = tmp_path / "release"
    source.mkdir()
    table = source / "hd.csv"
    table.write_text(
        "CID,IDSURVEY,zCMB,zHD,zHEL,MU,MUERR_FINAL\n1,10,0.2,0.2,0.2,40.0,0.1\n2,10,0.4,0.4,0.4,41.7,0.1\n"
    )
    as_text(systematic(2), source / "sys.txt.gz")
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    entry = downloads.Download(f"file://{source}/", ("hd.csv", digest), ("sys.txt.gz", None), "ours")
    monkeypatch.setitem(downloads.DOWNLOADS, "des-sn5yr", entry)
    # pooch takes the protocol from the address, and knows no local files; the rest of the way is the real one.
    import pooch

    def fetch_file(url, output_file, pooch_, check_only=False):
        Path(output_file).write_bytes(Path(url.removeprefix("file://")).read_bytes())

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda url, progressbar=False: fetch_file)
    data = load_distance_moduli("des-sn5yr", folder=tmp_path / "kept")
    assert len(data) == 2
    table.unlink()  # kept, so not fetched again
    assert fetch_distance_moduli("des-sn5yr", folder=tmp_path / "kept")["table"].exists()
    table.write_text("something else\n")
    with pytest.raises(DownloadError, match=r"hd\.csv: expected the file with SHA-256.*known_hash"):
        fetch_distance_moduli("des-sn5yr", folder=tmp_path / "elsewhere")
    fetch_distance_moduli("des-sn5yr", folder=tmp_path / "elsewhere", known_hash={"hd.csv": None})


def test_without_a_network(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")

    def offline(url, progressbar=False):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pooch.core, "choose_downloader", offline)
    monkeypatch.setenv("HBM_JAX_DATA", str(tmp_path))
    with pytest.raises(DownloadError) as error:
        load_distance_moduli("union3")
    for word in ("mu_mat_union3_cosmo=2_mu.fits", "no route to host", str(tmp_path / "union3"), "Without a network"):
        assert word in str(error.value)
    with pytest.raises(ValueError, match=r"Unknown sample 'union4'.*did you mean 'union3'"):
        fetch_distance_moduli("union4")


def test_checksums_are_those_of_files_at_hand(shared_data):
    for name, relative in (("pantheon+", "pantheon_plus_sh0es.dat"), ("des-sn5yr", "des_sn5yr_hd.csv")):
        content = shared_data(f"supernovae/{relative}").read_bytes()
        assert hashlib.sha256(content).hexdigest() == downloads.DOWNLOADS[name].table[1]


def table_of_hubble_constant(folder):
    """Write a table with one measurement of H0; return its path."""
    path = folder / "h0.csv"
    path.write_text("quantity,value,sigma\nH0,73.0,1.0\n")
    return path


def test_published_constraints_by_name(shared_data, tmp_path):
    mean, covariance = (shared_data(f"constraints/desi_dr2_bao_{part}.txt") for part in ("mean", "cov"))
    released, retyped = read_constraints(mean, covariance=covariance), load_constraints("desi-dr2-bao")
    order = [*range(11), 12, 11]  # the release has D_H before D_M at the last redshift
    assert retyped.quantity == tuple(released.quantity[i] for i in order)
    np.testing.assert_allclose(retyped.z, released.z[order], atol=1e-9)
    np.testing.assert_allclose(retyped.value, released.value[order], atol=5.1e-4)
    exact = released.covariance[np.ix_(order, order)]
    sigma = np.sqrt(np.diagonal(exact))
    np.testing.assert_allclose(np.sqrt(np.diagonal(retyped.covariance)), sigma, atol=5.1e-5)
    np.testing.assert_allclose(retyped.covariance / np.outer(sigma, sigma), exact / np.outer(sigma, sigma), atol=2e-3)
    assert HubbleDiagram(constraints="desi-dr2-bao").constraints.quantity == retyped.quantity
    both = load_constraints("planck-2018", "desi-dr2-bao")
    assert both.quantity == planck2018_distance_priors().quantity + retyped.quantity
    joined = HubbleDiagram(constraints=f"planck-2018 + desi-dr2-bao + {table_of_hubble_constant(tmp_path)}").constraints
    assert joined.quantity == (*both.quantity, "H0")
    np.testing.assert_array_equal(joined.covariance[:-1, :-1], both.covariance)
    with pytest.raises(ValueError, match=r"Unknown constraints 'desi-bao'.*did you mean"):
        HubbleDiagram(constraints="planck-2018 + desi-bao")
    with pytest.raises(ValueError, match=r"Unknown constraints 'desi-dr3-bao'.*did you mean 'desi-dr2-bao'"):
        load_constraints("desi-dr3-bao")
    with pytest.raises(ValueError, match="expected one or more of planck-2018"):
        load_constraints()


def test_constraints(tmp_path):
    both = planck2018_distance_priors() + desi2024_bao()
    assert len(both) == 15
    assert both.quantity[:3] == ("R", "l_A", "omega_b")
    sigma = np.sqrt(np.diagonal(both.covariance))
    np.testing.assert_allclose(sigma[:3], [0.0046, 0.0895, 0.00015], rtol=0.03)
    correlation = both.covariance / np.outer(sigma, sigma)
    np.testing.assert_allclose(
        [correlation[0, 1], correlation[0, 2], correlation[1, 2]], [0.46, -0.66, -0.33], atol=0.01
    )
    assert correlation[5, 6] == pytest.approx(-0.445)
    assert correlation[0, 5] == 0.0
    again = GaussianConstraints.from_config(both.to_config())
    np.testing.assert_array_equal(again.covariance, both.covariance)
    assert again.quantity == both.quantity
    (tmp_path / "mean.txt").write_text("# z value quantity\n0.295 7.93 DV_over_rs\n0.51 13.62 DM_over_rs\n")
    np.savetxt(tmp_path / "cov.txt", np.diag([0.15, 0.25]) ** 2)
    read = read_constraints(tmp_path / "mean.txt", covariance=tmp_path / "cov.txt")
    assert read.quantity == ("DV_over_rd", "DM_over_rd")
    np.testing.assert_allclose(read.covariance, np.diag([0.15, 0.25]) ** 2)
    (tmp_path / "h0.csv").write_text("quantity,value,sigma\nH0,73.0,1.0\n")
    assert read_constraints(tmp_path / "h0.csv").needs_hubble
    for change, words in (
        ({"quantity": ["R", "speed"]}, ["quantity", "row 1", "speed"]),
        ({"quantity": ["R", "DM_over_rd"]}, ["z", "redshift above 0", "row 1"]),
        ({"sigma": [1.0, 0.0]}, ["sigma", "row 1"]),
        ({"covariance": np.eye(2)}, ["both"]),
    ):
        with pytest.raises(DataError) as error:
            GaussianConstraints.from_columns(
                {"quantity": ["R", "l_A"], "value": [1.7, 300.0], "sigma": [0.1, 1.0]} | change
            )
        for word in words:
            assert word in str(error.value)


def test_a_release_without_its_optional_columns_is_read(tmp_path):
    path = tmp_path / "part.dat"
    path.write_text("CID zHD m_b_corr m_b_corr_err_DIAG\na 0.1 19.0 0.1\nb 0.2 20.6 0.2\n")
    data = read_distance_moduli(path, format="pantheon+", covariance="diagonal")
    assert data.name == ("a", "b")
    np.testing.assert_array_equal(data.z_hel, data.z_cmb)
    assert not data.is_calibrator.any()
