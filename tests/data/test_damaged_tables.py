"""Tables of other forms and damaged files: read, or a named error, within a stated size."""

import bz2
import gzip
import lzma

import numpy as np
import pytest
from astropy.table import Table

from hbm_jax import validation
from hbm_jax.data import DataError, read_relation, read_supernovae, read_table
from hbm_jax.data.correlated_supernova_files import _read_blocks
from hbm_jax.spectra.ogip import read_pha

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
    monkeypatch.setattr(validation, "MAX_EXPANDED", 1 << 22)
    path = tmp_path / name
    if name == "t.npz":
        np.savez_compressed(path, v0=np.zeros(10**6))
    else:
        path.write_bytes(gzip.compress(b"x,y\n" + b"1,2\n" * 2_000_000))
    assert path.stat().st_size < 20_000
    read = {"t.pha": read_pha, "t.npz": _read_blocks}.get(name, read_table)
    with pytest.raises(DataError, match=r"expected at most 4 MiB when it is decompressed, found more"):
        read(path)


@pytest.mark.parametrize("compress", [bz2.compress, lzma.compress])
def test_a_file_that_is_compressed_in_another_way_is_refused(compress, tmp_path):
    path = tmp_path / "t.ecsv"
    path.write_bytes(compress(b"x,y\n1,2\n"))
    with pytest.raises(DataError, match=r"t\.ecsv: expected a file as it is or compressed by gzip; found one by bzip2"):
        read_table(path)


def test_snana_has_its_codes_and_its_covariances(tmp_path):
    x0, x1, c = 2.6e-3, 0.4, -0.05
    names = "CID zHD zHEL mB mBERR x1 x1ERR c cERR x0 x0ERR COV_x1_c COV_x1_x0 COV_c_x0 HOST_LOGMASS HOST_LOGMASS_ERR"
    row = f"{0.05} {0.051} 17.1 0.03 {x1} 0.1 {c} 0.02 {x0} 7e-5 2e-4 -1e-6 -4e-7"
    text = f"NVAR: 15\nVARNAMES: {names}\nSN: a {row} 10.5 0.1\nSN: b {row} -9 -9\n"
    (tmp_path / "t.FITRES").write_text(text)
    sne = read_supernovae(tmp_path / "t.FITRES", format="snana")
    assert sne.name == ("a", "b")
    np.testing.assert_array_equal(sne.has_host_mass, [True, False])
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
