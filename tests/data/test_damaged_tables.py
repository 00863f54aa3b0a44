"""Tables of other forms and damaged files: read, or a named error, within a stated size."""

import bz2
import gzip
import lzma
import time

import numpy as np
import pytest
from astropy.table import Table
from monte_carlo import seed

from hbm_jax import reading
from hbm_jax.data import (
    DataError,
    load_jla,
    read_correlated_supernovae,
    read_distance_moduli,
    read_relation,
    read_supernovae,
    read_table,
)
from hbm_jax.data.supernovae.correlated_tables import _read_blocks
from hbm_jax.spectra.ogip.pha import read_pha

ROWS = {"x": [1.0, 2.0, 4.0], "y": [1.1, 2.3, 3.8]}


@pytest.mark.parametrize(
    ("suffix", "mark"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".csv.gz", ";"), (".csv", ", ")]
)
def test_whatever_stands_between_columns(tmp_path, suffix, mark):
    lines = [
        "# a comment",
        mark.join(ROWS),
        "",
        *(mark.join(map(str, row)) for row in zip(*ROWS.values(), strict=True)),
    ]
    path = tmp_path / f"table{suffix}"
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    np.testing.assert_array_equal(np.array(read_table(path).values("y"), float), ROWS["y"])
    assert read_relation(path).num_points == 3


def test_quoted_entries_may_hold_commas(tmp_path):
    (tmp_path / "t.csv").write_text('name,x\n"GRB 1, early",1.5\nGRB 2,2.5\n')
    assert list(read_table(tmp_path / "t.csv").values("name")) == ["GRB 1, early", "GRB 2"]
    (tmp_path / "t.csv").write_text('name,x\n"GRB\n1",1.5\nGRB 2,2.5\n"GRB 3"\n')
    with pytest.raises(DataError, match="line 5: expected 2 fields, as in the header, found 1"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text('name,x\n"GRB\n1",1.5\nGRB 2,2.5\n')
    assert list(read_table(tmp_path / "t.csv").values("name")) == ["GRB\n1", "GRB 2"]
    # An entry that is not closed would swallow all rows that follow.
    (tmp_path / "t.csv").write_text('x,name\n1.5,"GRB 1\n2.5,GRB 2\n')
    with pytest.raises(DataError, match=r"t\.csv: could not be read as csv: unexpected end of data"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("lost", [1, 40, -30])
@pytest.mark.parametrize("suffix", [".fits", ".fits.gz", ".csv.gz", ".ecsv"])
def test_files_cut_short_or_changed_are_a_named_error_or_read(tmp_path, suffix, lost):
    path = tmp_path / f"table{suffix}"
    Table(ROWS).write(path, format={".csv.gz": "ascii.csv", ".ecsv": "ascii.ecsv"}.get(suffix, "fits"))
    data = path.read_bytes()
    path.write_bytes(data[:lost])
    with pytest.raises(DataError, match=str(path)):
        read_table(path)
    if suffix == ".fits":
        path.write_bytes(data.replace(b"BITPIX", b"BITPUX"))
        with pytest.raises(DataError, match=str(path)):
            read_table(path)
    if suffix.endswith("gz"):
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 6]) + data[middle + 6 :])
        with pytest.raises(DataError, match=str(path)):
            read_table(path)


def test_an_unknown_format_and_a_field_without_end(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("x y\n1 2\n")
    with pytest.raises(DataError, match=r"t\.txt: could not be read as nonsense: .*format"):
        read_table(path, format="nonsense")
    (tmp_path / "t.csv").write_text('x,"y"\n1,' + "9" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"t\.csv: could not be read as csv: field larger than"):
        read_table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.csv.gz", "t.ecsv", "t.fits", "t.pha", "t.npz"])
def test_a_compressed_file_has_a_limit_whatever_its_name(name, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BYTES", 1 << 22)
    path = tmp_path / name
    if name == "t.npz":
        np.savez_compressed(path, v0=np.zeros(10**6))
    else:
        path.write_bytes(gzip.compress(b"x,y\n" + b"1,2\n" * 2_000_000))
    assert path.stat().st_size < 20_000
    read = {"t.pha": read_pha, "t.npz": _read_blocks}.get(name, read_table)
    with pytest.raises(DataError, match=r"expected at most 4 MiB when decompressed; found more"):
        read(path)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_a_file_that_is_compressed_in_another_way_is_refused(compress, tmp_path):
    path = tmp_path / "t.ecsv"
    path.write_bytes(compress(b"x,y\n1,2\n"))
    with pytest.raises(DataError, match=r"t\.ecsv: expected no compression other than gzip; found bzip2"):
        read_table(path)


@pytest.mark.parametrize("options", [{}, {"missing": -99}, {"leave_out": "row 3"}])
def test_the_time_of_reading_does_not_grow_with_the_square_of_the_rows(tmp_path, options):
    """`benchmarks/read_tables.py` has a million rows: two seconds; where rows or groups met each other, minutes."""
    x = np.random.default_rng(seed(1)).normal(size=100_000)
    rows = (f"{value:.6f},{2 * value:.6f},g{i % 1000}\n" for i, value in enumerate(x))
    (tmp_path / "t.csv").write_text("x,y,group\n" + "".join(rows))
    began = time.process_time()
    data = read_relation(tmp_path / "t.csv", **options)
    assert time.process_time() - began < 3.0
    assert data.num_points == 100_000 - ("leave_out" in options)
    np.testing.assert_array_equal(data.values[data.name.index("g5"), 7, 0], round(x[7005], 6))


def test_damaged_files_of_published_formats_are_named(tmp_path):
    text = "#name zcmb zhel mb dmb\na 0.1 0.1 19.0 0.1\n"
    broken = {
        "snana": gzip.compress(text.encode() * 50)[:-20],
        "pantheon+": b"\xff\xfe\x00\x01",
        "union3": b"SIMPLE  = no FITS",
        "des-dovekie": gzip.compress(b"VARNAMES: CID zHD\n" * 50)[:30],
    }
    for name, content in broken.items():
        path = tmp_path / "table.gz" if content[:2] == b"\x1f\x8b" else tmp_path / "table"
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path}: expected a table of the format .* found one that cannot"):
            read_distance_moduli(path, format=name)
    with pytest.raises(
        DataError, match=r"table\.gz: could not be read as a table of SNANA: expected a whole gzip file"
    ):
        read_supernovae(tmp_path / "table.gz", format="snana")
    np.savez(tmp_path / "whole.npz", v0=np.eye(2))
    whole = (tmp_path / "whole.npz").read_bytes()
    table = {"z_cmb": [0.1, 0.2], "mu": [38.0, 39.9]}
    half = whole[: len(whole) // 2]
    cut = gzip.compress(b"1 0 0 1 " * 99)[:-9]
    for name, content in {"c.npz": half, "c.npy": b"", "c.txt": b"1 0 x 1", "c.gz": cut}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: expected a covariance that can be read, found one that cannot"):
            read_distance_moduli(table, covariance=str(tmp_path / name))
    with pytest.raises(DataError, match=r"c\.npz: expected covariances that can be read"):
        read_correlated_supernovae(load_jla().subset([0, 1]).to_table(), covariance=str(tmp_path / "c.npz"))


def test_snana_has_its_codes_and_its_covariances(tmp_path):
    x0, x1, c = 2.6e-3, 0.4, -0.05
    names = "CID zHD zHEL mB mBERR x1 x1ERR c cERR x0 x0ERR COV_x1_c COV_x1_x0 COV_c_x0 HOST_LOGMASS HOST_LOGMASS_ERR"
    row = f"{0.05} {0.051} 17.1 0.03 {x1} 0.1 {c} 0.02 {x0} 7e-5 2e-4 -1e-6 -4e-7"
    text = f"NVAR: 15\nVARNAMES: {names}\nSN: a {row} 10.5 0.1\nSN: b {row} -9 -9\nSN: d {row} 9.5 0\n"
    (tmp_path / "t.FITRES").write_text(text)
    sne = read_supernovae(tmp_path / "t.FITRES", format="snana")
    assert sne.name == ("a", "b", "d")
    np.testing.assert_array_equal(sne.log10_mass, [10.5, np.nan, 9.5])
    np.testing.assert_array_equal(sne.sigma_log10_mass, [0.1, np.nan, np.nan])
    # m_B = const - 2.5 log10 x0, so that d m_B = -1.0857 d x0 / x0.
    step = 1e-6 * x0
    slope = (-2.5 * np.log10(x0 + step) + 2.5 * np.log10(x0 - step)) / (2 * step)
    np.testing.assert_allclose(sne.covariance[0, 0, 1:], [slope * -1e-6, slope * -4e-7], rtol=1e-6)
    np.testing.assert_allclose(sne.covariance[0, 1, 2], 2e-4)


@pytest.mark.parametrize(
    "meta",
    [
        "!!python/object/apply:os.system ['touch TRAP']",
        "!!omap\n# - __serialized_columns__:\n#     z: {__class__: os.system, command: touch TRAP}",
        "!!omap\n# - __serialized_columns__:\n#     z: {__class__: subprocess.Popen, args: touch TRAP, shell: true}",
    ],
)
def test_nothing_that_the_metadata_of_a_table_names_is_run(meta, tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "t.ecsv"
    head = "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: x, datatype: float64}\n# meta: "
    path.write_text(head + meta.replace("TRAP", str(trap)) + "\nx\n1\n")
    with pytest.raises(DataError, match=r"t\.ecsv: could not be read as ascii\.ecsv"):
        read_table(path)
    assert not trap.exists()
