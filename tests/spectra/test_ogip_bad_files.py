"""Broken OGIP files: each is read, or refused by an error that says where it is wrong, and by nothing else."""

import gzip
import warnings

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from small_ogip import NUM_CHANNELS, NUM_ENERGIES, small_arf, small_rmf, small_spectrum, spoilt

from hbm_jax.data import read_afterglows, read_table
from hbm_jax.spectra.ogip.pha import read_pha, read_spectrum
from hbm_jax.spectra.ogip.responses import read_arf, read_rmf
from hbm_jax.spectra.ogip.writing import write_arf, write_pha, write_rmf
from hbm_jax.validation import DataError

READERS = {"a.pha": read_pha, "a.rmf": read_rmf, "a.arf": read_arf}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Bytes of sound files by name."""
    folder = tmp_path_factory.mktemp("sound")
    grouping = np.tile([1, -1, -1], NUM_CHANNELS // 3)
    write_pha(folder / "a.pha", small_spectrum(grouping=grouping), background="b.pha", rmf="a.rmf", arf="a.arf")
    write_rmf(folder / "a.rmf", small_rmf())
    write_arf(folder / "a.arf", small_arf())
    return {name: (folder / name).read_bytes() for name in READERS}


def outcome(path, name, data):
    """Whether bytes are read (True) or refused; anything else fails."""
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            READERS[name](path)
            read = True
        except DataError as error:
            message, read = str(error), False
    # What is there and not used is said; nothing else is.
    said = [str(w.message) for w in seen]
    assert all(str(path) in text and ("SYS_ERR" in text or "CORRFILE" in text) for text in said), said
    assert read or str(path) in message
    return read


def with_card(data, key, value):
    """Replace the value of a keyword, everywhere."""
    start = f"{key:8}= ".encode()
    assert start in data
    parts = data.split(start)
    card = f"{value:>20}".encode().ljust(70)
    return parts[0] + b"".join(start + card + part[70:] for part in parts[1:])


@pytest.mark.parametrize("name", READERS)
def test_files_cut_short_are_refused(sound, tmp_path, name):
    data = sound[name]
    assert outcome(tmp_path / name, name, data)
    rng = np.random.default_rng(1)
    lengths = {*range(0, len(data), 2880), 1, 79, *rng.integers(1, len(data), 40).tolist()} - {len(data)}
    for length in sorted(lengths):
        assert not outcome(tmp_path / name, name, data[:length]), length


@pytest.mark.parametrize("name", READERS)
def test_flipped_bytes_are_read_or_refused(sound, tmp_path, name):
    data = np.frombuffer(sound[name], np.uint8)
    rng = np.random.default_rng(2)
    filled = np.flatnonzero((data != ord(" ")) & (data != 0))  # most of a small file is padding
    refused = 0
    for _ in range(60):
        changed = data.copy()
        at = rng.choice(filled, rng.integers(1, 4))
        changed[at] ^= (1 << rng.integers(0, 8, len(at))).astype(np.uint8)
        refused += not outcome(tmp_path / name, name, changed.tobytes())
    assert 8 < refused < 60


@pytest.mark.parametrize("name", READERS)
def test_spoilt_keywords_are_read_or_refused(sound, tmp_path, name):
    structure = {"XTENSION", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "PCOUNT", "GCOUNT", "TFIELDS"}
    with fits.HDUList.fromstring(sound[name]) as hdus:
        keys = {key for hdu in hdus[1:] for key in hdu.header if key and len(key) <= 8}
    values = ("'abc'", "-1", "1E300", "T", "", "99999999", "0.5", "'J'", "'P'", "'1PE(-3)'", "'32A'", "'NaN'")
    rng = np.random.default_rng(3)
    assert keys >= structure - {"XTENSION"}
    for key in sorted(keys):
        for value in rng.choice(values, 1, replace=False):
            outcome(tmp_path / name, name, with_card(sound[name], key, value))


@pytest.mark.parametrize("name", READERS)
def test_wrong_formats_of_columns_are_read_or_refused(sound, tmp_path, name):
    with fits.HDUList.fromstring(sound[name]) as hdus:
        num = max(len(hdu.columns) for hdu in hdus[1:])
    for column in range(1, num + 1):
        for form in ("'L'", "'X'", "'B'", "'I'", "'K'", "'4E'", "'C'", "'A'", "'PE'", "'QD(5)'", "'0J'", "'Z'"):
            outcome(tmp_path / name, name, with_card(sound[name], f"TFORM{column}", form))


def test_other_files_are_refused(sound, tmp_path):
    image = tmp_path / "image.fits"
    fits.PrimaryHDU(np.zeros((3, 3))).writeto(image)
    for name in READERS:
        for data in (b"", b"\x00" * 2880, b"SIMPLE  =", b"no FITS file at all\n" * 500, image.read_bytes()):
            assert not outcome(tmp_path / name, name, data)
        others = [data for other, data in sound.items() if other != name]
        for data in others:
            assert not outcome(tmp_path / name, name, data)
        packed = gzip.compress(sound[name], mtime=0)
        assert outcome(tmp_path / name, name, packed)  # as whole files, whatever their names
        for length in (0, 5, 20, len(packed) // 2, len(packed) - 9, len(packed) - 1):
            assert not outcome(tmp_path / name, name, packed[:length])


def test_shared_files_spoilt_are_read_or_refused(shared_data, tmp_path):
    rng = np.random.default_rng(5)
    for shared, name in (
        ("xray/swift_xrt_grb050401/apc.pi", "a.pha"),
        ("xray/chandra_gcs25_joint/arf2278.fits", "a.arf"),
        ("grb/synth_gbm/n1.pha", "a.pha"),
    ):
        data = shared_data(shared).read_bytes()
        for length in rng.integers(1, len(data), 10):
            assert not outcome(tmp_path / name, name, data[:length])
        for _ in range(15):
            changed = bytearray(data)
            for at in rng.integers(2880, 4 * 2880, 3):
                changed[at] ^= 1 << int(rng.integers(0, 8))
            outcome(tmp_path / name, name, bytes(changed))


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("EXPOSURE", "'abc'", r"\[SPECTRUM\], EXPOSURE: expected a number; found 'abc'"),
        ("EXPOSURE", "0.0", r"\[SPECTRUM\], EXPOSURE: expected one positive time \[s\]; found 0"),
        ("EXPOSURE", "-5.0", r"EXPOSURE: .*; found -5"),
        ("EXPOSURE", "", r"EXPOSURE: .*; found nan"),
        ("EXPOSURE", "'NaN'", r"EXPOSURE: .*; found nan"),
        ("EXPOSURE", "T", r"EXPOSURE: .*; found nan"),
        ("BACKSCAL", "-1.0", r"BACKSCAL, row 0: expected a scale of 0 or more; found -1 \(12 such rows of 12\)"),
        ("AREASCAL", "'inf'", r"AREASCAL, row 0: .*; found inf"),
        ("QUALITY", "0.5", r"QUALITY, row 0: expected a whole number; found 0.5"),
    ],
)
def test_spoilt_keywords_are_named(sound, tmp_path, key, value, expected):
    path = tmp_path / "a.pha"
    path.write_bytes(with_card(sound["a.pha"], key, value))
    with pytest.raises(DataError, match=expected) as caught:
        read_pha(path)
    assert str(path) in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*(SYS_ERR|CORRFILE)")
@pytest.mark.parametrize("grouping", ["channels_per_group", "optimal"])
def test_a_folder_with_a_spoilt_file_is_read_or_its_source_is_named(sound, tmp_path, grouping):
    files = dict(sound)
    write_pha(tmp_path / "b.pha", small_spectrum())
    files["b.pha"] = (tmp_path / "b.pha").read_bytes()
    write_pha(tmp_path / "c.pha", small_spectrum(), rmf="c.rmf", arf="c.arf")
    for name, data in (*files.items(), ("c.rmf", sound["a.rmf"]), ("c.arf", sound["a.arf"])):
        (tmp_path / name).write_bytes(data)
    catalogue = Table({"name": ["a", "c"], "z": [1.0, 2.0]})
    options = {"spectra": str(tmp_path), "energies": (0.01, 1e3), "grouping": grouping}
    options |= {"group_by": 3} if grouping == "channels_per_group" else {}
    assert len(read_afterglows(catalogue, **options)) == 2
    rng = np.random.default_rng(8)
    messages = []
    for _ in range(4):
        for name, data in files.items():
            (tmp_path / name).write_bytes(spoilt(data, rng))
            try:
                assert len(read_afterglows(catalogue, **options)) == 2
            except DataError as error:
                messages.append(str(error))
                assert read_afterglows(catalogue, **options, leave_out="a").name == ("c",)
            (tmp_path / name).write_bytes(data)
    assert 2 < len(messages) < 16
    assert all("found 1 that cannot:\n  a: " in text and "leave_out=['a']" in text for text in messages)


def columns_of(hdu):
    return {c.name: (c.format, np.array(hdu.data[c.name])) for c in hdu.columns}


def refused(path, data, name, values, extension, expected, reader):
    """Rewrite a column and expect an error."""
    path.write_bytes(data)
    with fits.open(path) as hdus:
        tables = {hdu.name: columns_of(hdu) for hdu in hdus[1:]}
        headers = {hdu.name: hdu.header for hdu in hdus[1:]}
    form = tables[extension][name][0]
    form = "D" if np.asarray(values).dtype.kind == "f" and np.ndim(values) == 1 else form
    tables[extension][name] = (form, values)
    new = [fits.PrimaryHDU()]
    for table, columns in tables.items():
        hdu = fits.BinTableHDU.from_columns([fits.Column(n, f, array=a) for n, (f, a) in columns.items()], name=table)
        hdu.header.extend(headers[table], unique=True, strip=True)
        new.append(hdu)
    fits.HDUList(new).writeto(path, overwrite=True)
    with pytest.raises(DataError, match=expected) as caught:
        reader(path)
    assert str(path) in str(caught.value)


def at(values, row, value):
    values = np.array(values, float if isinstance(value, float) else None)
    values[row] = value
    return values


COUNTS, CHANNELS = small_spectrum().counts, small_spectrum().channels


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("COUNTS", at(COUNTS, 4, -3.0), r"\[SPECTRUM\], COUNTS, row 4: expected counts of 0 or more; found -3"),
        ("COUNTS", at(COUNTS, 2, np.nan), r"COUNTS, row 2: expected a finite number; found nan"),
        ("COUNTS", at(COUNTS, 2, np.inf), r"COUNTS, row 2: expected a finite number; found inf"),
        ("CHANNEL", at(CHANNELS, 5, 99), r"CHANNEL, row 5: expected channel 8, .*; found 99"),
        ("CHANNEL", at(CHANNELS, 5, 7.5), r"CHANNEL, row 5: expected a channel number; found 7.5"),
        ("CHANNEL", CHANNELS[::-1].copy(), r"CHANNEL, row 1: expected channel 15, .*; found 13"),
        ("GROUPING", at(np.ones(NUM_CHANNELS, int), 3, 4), r"GROUPING, row 3: expected 1, 0 or -1; found 4"),
    ],
)
def test_spoilt_spectra_say_which_row(sound, tmp_path, name, values, expected):
    refused(tmp_path / "a.pha", sound["a.pha"], name, values, "SPECTRUM", expected, read_pha)


ENERGY, NUM_GROUPS = small_rmf().energy, 3 * np.ones(NUM_ENERGIES, int)


def objects(rows):
    array = np.empty(len(rows), object)
    array[:] = [np.asarray(row) for row in rows]
    return array


@pytest.mark.parametrize(
    ("name", "extension", "values", "expected"),
    [
        ("N_GRP", "MATRIX", at(NUM_GROUPS, 2, 30000), r"\[MATRIX\], row \d, N_GRP: expected 0 to .* groups"),
        ("N_GRP", "MATRIX", np.full(NUM_ENERGIES, -1), r"row 0, N_GRP: expected 0 to .* groups.*; found -1"),
        ("F_CHAN", "MATRIX", objects([[900] * 9] * 8), r"row 0, F_CHAN: expected channels 3 to 14; found channels 900"),
        ("F_CHAN", "MATRIX", objects([[2] * 9] * 8), r"row 0, F_CHAN: expected channels 3 to 14; found channels 2"),
        ("N_CHAN", "MATRIX", objects([[-2] * 9] * 8), r"row 0, N_CHAN: expected groups of 0 to 12 channels"),
        ("N_CHAN", "MATRIX", objects([[900] * 9] * 8), r"row 0, N_CHAN: expected groups of 0 to 12 channels"),
        ("MATRIX", "MATRIX", objects([[np.nan] * 12] * 8), r"row 0, MATRIX: expected finite numbers .*; found nan"),
        ("MATRIX", "MATRIX", objects([[-1.0] * 12] * 8), r"row 0, MATRIX: .* a sum of 0 or more; found -1"),
        ("MATRIX", "MATRIX", objects([[0.5]] * 8), r"row 0, N_CHAN: .* the 1 values of MATRIX"),
        ("ENERG_LO", "MATRIX", at(ENERGY[:-1], 3, np.nan), r"\[MATRIX\], ENERG_LO, row 3: .*; found nan"),
        ("ENERG_LO", "MATRIX", ENERGY[:-1][::-1].copy(), r"ENERG_LO: expected increasing energies"),
        ("ENERG_HI", "MATRIX", at(ENERGY[1:], 3, 0.01), r"ENERG_HI, row 3: expected an energy not below ENERG_LO"),
        ("ENERG_HI", "MATRIX", at(ENERGY[1:], 3, 50.0), r"ENERG_HI, row 3: expected the ENERG_LO of the next row"),
        ("E_MIN", "EBOUNDS", at(small_rmf().e_min, 1, np.nan), r"\[EBOUNDS\], E_MIN, row 1: expected a finite energy"),
        ("E_MAX", "EBOUNDS", at(small_rmf().e_max, 1, 0.0), r"\[EBOUNDS\], E_MAX, row 1: .* not below E_MIN"),
        (
            "E_MIN",
            "EBOUNDS",
            at(small_rmf().e_min, 0, -0.1),
            r"E_MIN, row 0: expected a finite energy of 0 .*; found -0.1",
        ),
        (
            "E_MAX",
            "EBOUNDS",
            at(small_rmf().e_max, 3, 2.0),
            r"E_MAX, row 3: expected .* E_MIN of the next .*; found 2 keV",
        ),
        ("E_MIN", "EBOUNDS", at(small_rmf().e_min, 5, 0.9), r"E_MAX, row 4: .* next channel, 0.9 keV; found 1.06"),
        ("CHANNEL", "EBOUNDS", at(CHANNELS, 1, 12), r"\[EBOUNDS\], CHANNEL, row 1: expected channel 4, .*; found 12"),
    ],
)
def test_spoilt_matrices_say_which_row(sound, tmp_path, name, extension, values, expected):
    refused(tmp_path / "a.rmf", sound["a.rmf"], name, values, extension, expected, read_rmf)


def test_spoilt_areas_say_which_row(sound, tmp_path):
    area = small_arf().area
    for value in (-1.0, np.nan, np.inf):
        expected = r"\[SPECRESP\], SPECRESP, row 6: expected an effective area of 0 or more"
        refused(tmp_path / "a.arf", sound["a.arf"], "SPECRESP", at(area, 6, value), "SPECRESP", expected, read_arf)


@pytest.mark.parametrize("value", ["'abc'", "-32768", "99", "0.5", "'nan'"])
def test_a_wrong_first_channel_is_refused(sound, tmp_path, value):
    path = tmp_path / "a.rmf"
    path.write_bytes(with_card(sound["a.rmf"], "TLMIN4", value))
    with pytest.raises(DataError, match=r"TLMIN4|F_CHAN: expected channels"):
        read_rmf(path)


def test_missing_columns_and_extensions_are_named(sound, tmp_path):
    path = tmp_path / "a.pha"
    path.write_bytes(sound["a.pha"].replace(b"'COUNTS  '", b"'KOUNTS  '"))
    with pytest.raises(DataError, match="expected a column COUNTS or RATE; found CHANNEL, KOUNTS, GROUPING"):
        read_pha(path)
    path.write_bytes(sound["a.rmf"].replace(b"'N_CHAN  '", b"'M_CHAN  '"))
    with pytest.raises(DataError, match="expected a column N_CHAN; found ENERG_LO, ENERG_HI, N_GRP, F_CHAN, M_CHAN"):
        read_rmf(path)
    path.write_bytes(sound["a.rmf"].replace(b"'EBOUNDS '", b"'OTHER   '"))
    with pytest.raises(DataError, match="expected an extension EBOUNDS; found PRIMARY, MATRIX, OTHER"):
        read_rmf(path)
    path.write_bytes(sound["a.arf"])
    with pytest.raises(DataError, match="expected an extension SPECTRUM; found PRIMARY, SPECRESP"):
        read_pha(path)


def test_files_that_do_not_belong_together_are_refused(sound, tmp_path):
    for name, data in sound.items():
        (tmp_path / name).write_bytes(data)
    path, other = tmp_path / "a.pha", tmp_path / "b.pha"
    write_pha(other, small_spectrum(first=4))
    with pytest.raises(DataError, match=r"b\.pha: expected the channels 3 to 14 of .*a\.pha; found 4 to 15"):
        read_spectrum(path)
    write_pha(other, small_spectrum(), overwrite=True)
    assert read_spectrum(path).response is not None
    write_rmf(tmp_path / "c.rmf", small_rmf(first=2))
    with pytest.raises(DataError, match=r"c\.rmf: expected the channels 3 to 14 of .*a\.pha; found 2 to 13"):
        read_spectrum(path, rmf=tmp_path / "c.rmf")
    arf = small_arf()
    shifted = type(arf)(arf.energy * 1.01, arf.area, "shifted")
    write_arf(tmp_path / "c.arf", shifted)
    with pytest.raises(
        DataError, match=r"c\.arf\[SPECRESP\]: expected the energy bins of .*a\.rmf\[MATRIX\], the edge"
    ):
        read_spectrum(path, arf=tmp_path / "c.arf")
    write_arf(tmp_path / "c.arf", type(arf)(arf.energy[:-1], arf.area[:-1], "short"), overwrite=True)
    with pytest.raises(DataError, match=r"c\.arf\[SPECRESP\]: expected the 8 energy bins of .*; found 7"):
        read_spectrum(path, arf=tmp_path / "c.arf")


def table_of_one_column(path, form, rows, data=b"", length=0):
    """Write a table by hand, as no library would."""
    width = {"J": 4}.get(form[-1], 8) if form[0] != "0" else 0
    cards = {"XTENSION": "BINTABLE", "BITPIX": 8, "NAXIS": 2, "NAXIS1": width, "NAXIS2": rows, "PCOUNT": length}
    cards |= {"GCOUNT": 1, "TFIELDS": 1, "TTYPE1": "COUNTS", "TFORM1": form, "EXTNAME": "SPECTRUM", "EXPOSURE": 1.0}
    content = fits.PrimaryHDU().header.tostring() + fits.Header(cards.items()).tostring()
    content = content.encode() + data
    path.write_bytes(content + b"\0" * (-len(content) % 2880))


@pytest.mark.parametrize("read", [read_pha, read_table])
def test_small_tables_of_very_many_numbers_are_refused(read, tmp_path):
    path = tmp_path / "a.fits"
    table_of_one_column(path, "0J", 10**10)
    with pytest.raises(DataError, match=r"a\.fits.*expected rows with data; found 10000000000 empty rows"):
        read(path)
    rows, length = 4000, 250_000  # each row has the same array
    shared = np.tile(np.array([length, 0], ">i4"), (rows, 1)).tobytes() + np.ones(length, ">f4").tobytes()
    table_of_one_column(path, f"1PE({length})", rows, shared, 4 * length)
    assert path.stat().st_size < 1.1e6
    with pytest.raises(DataError, match=r"COUNTS: expected at most about as many .* found 1000000000, because"):
        read(path)
