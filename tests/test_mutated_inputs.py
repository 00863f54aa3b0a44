"""Hundreds of files, tables, formulas and run folders with something wrong in them.

Each ends in a result or in a named error, within limits of time and memory, and no other value ever comes back: what
is read is what an independent reader finds in the same bytes.
"""

import contextlib
import csv
import io
import resource
import shutil
import signal
import warnings

import numpy as np
import pytest
from astropy.io import fits
from monte_carlo import seed
from spectra.small_ogip import small_spectrum, spoilt
from stored_fits import load

import hbm_jax
from hbm_jax.data import DataError, RegressionData, read_relation
from hbm_jax.inference import ResultFileError
from hbm_jax.spectra.ogip.pha import read_pha
from hbm_jax.spectra.ogip.writing import write_pha

pytestmark = pytest.mark.long

NUM = 300
SECONDS, BYTES = 30, 2 << 30  # for one input, and beyond what the process has


@contextlib.contextmanager
def limits():
    """Raise where one input takes too long, or too much memory."""

    def too_long(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (now + BYTES, before[1]))
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def changed_text(text, rng, pieces):
    """A text with a few characters taken away, exchanged or put in, or cut short."""
    for _ in range(rng.integers(1, 4)):
        at, kind = int(rng.integers(0, len(text) + 1)), rng.integers(0, 4)
        piece = str(rng.choice(pieces))
        if kind == 0:
            text = text[:at] + piece + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + int(rng.integers(1, 4)) :]
        elif kind == 2:
            text = text[:at] + piece + text[at + len(piece) :]
        elif rng.uniform() < 0.2:
            text = text[:at]
    return text


def test_tables(tmp_path):
    rng = np.random.default_rng(seed(1))
    rows = [f"{x:.3f},{2 * x:.3f},{0.1},{'ab'[i % 2]}" for i, x in enumerate(rng.normal(size=12))]
    sound = "# a table\nx,y,sigma_y,group\n" + "\n".join(rows) + "\n"
    pieces = [",", "\n", '"', ";", "\t", "nan", "inf", "-", "1e999", "-99", "#", "x", "é", "\x00", "9" * 30, "\r", "'"]
    read = named = 0
    for _ in range(NUM):
        text = changed_text(sound, rng, pieces)
        path = tmp_path / "t.csv"
        path.write_text(text, newline="")
        with limits():
            try:
                data = read_relation(path)
            except DataError as error:
                named += str(path) in str(error)
                continue
        read += 1
        # The csv module finds the same numbers in the same lines.
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        mark = next(mark for mark in ",\t;" if mark in lines[0])
        table = list(csv.DictReader(io.StringIO("\n".join(lines)), delimiter=mark, skipinitialspace=True))
        by_name = [{key.strip(): value for key, value in row.items()} for row in table]
        used = np.asarray(data.used)
        order = np.argsort(np.asarray(data.row)[used])
        for place, key in enumerate(("x", "y")):
            np.testing.assert_array_equal(
                np.asarray(data.values)[used][order][:, place], [float(row[key]) for row in by_name]
            )
    assert read + named == NUM
    assert NUM / 10 < read < NUM


def test_formulas(tmp_path):
    rng = np.random.default_rng(seed(2))
    columns = {name: rng.normal(size=30) for name in ("x", "z", "y")} | {"k": np.array(list("abc") * 10)}
    columns |= {"t": np.arange(30)}
    sound = ["y ~ x + z", "y ~ x*z + (1 + x | k)", "log(y**2) ~ C(k):x + (1 | walk(t))", "y ~ I(x / 2) + poly(z, 2)"]
    file = tmp_path / "made"
    pieces = [
        "|",
        "||",
        "~",
        "(",
        ")",
        "**9",
        "+",
        "-",
        ":",
        "*",
        "/",
        "x",
        "k",
        "{",
        "}",
        "`",
        "'",
        ".",
        "[0]",
        "=",
        "np.",
        "__import__",
        "open",
        "eval",
        "log(",
        "C(",
        "1e99",
        "0",
        ",",
        "é",
        "I(",
    ]
    pieces += [f"open('{file}','w')", "\n", '"']
    read = 0
    for number in range(NUM):
        formula = changed_text(sound[number % len(sound)], rng, pieces)
        with limits():
            try:
                data = RegressionData.from_columns(columns, formula)
            except DataError:
                continue
        read += 1
        assert set(data.source.columns) <= set(columns)
        assert np.isfinite(data.X).all()
        # Columns by themselves are those of the table.
        for name in ("x", "z"):
            if name in data.terms:
                np.testing.assert_array_equal(np.asarray(data.X)[:, data.terms.index(name)], columns[name])
        if data.response == "y":
            np.testing.assert_array_equal(data.y, columns["y"])
    assert not file.exists()
    assert NUM / 10 < read < NUM


def test_spectra(tmp_path):
    rng = np.random.default_rng(seed(3))
    path = tmp_path / "a.pha"
    write_pha(path, small_spectrum())
    sound, read, named = path.read_bytes(), 0, 0
    for _ in range(NUM):
        path.write_bytes(spoilt(sound, rng))
        with limits():
            try:
                found = read_pha(path)
            except DataError as error:
                named += str(path) in str(error)
                continue
            with fits.open(path) as hdus:
                independent = np.array(hdus[1].data["COUNTS"], float)
        read += 1
        np.testing.assert_array_equal(found[0].counts, independent)
    assert read + named == NUM
    assert NUM / 10 < read < NUM


def test_run_folders(tmp_path):
    rng = np.random.default_rng(seed(4))
    fit = load("relation")
    sound = tmp_path / "sound"
    sound.mkdir()
    fit.save(sound / "posterior.nc")
    expected = hbm_jax.load(sound).posterior
    changed, read, named = tmp_path / "changed", 0, 0
    for _ in range(NUM):
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(sound, changed)
        path = changed / "posterior.nc"
        data = bytearray(path.read_bytes())
        kind = rng.integers(0, 3)
        if kind == 0:
            del data[int(rng.integers(1, len(data))) :]
        else:
            for at in rng.integers(0, len(data), 1 if kind == 1 else 6):
                data[at] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(data))
        with limits():
            try:
                posterior = hbm_jax.load(changed).posterior
            except ResultFileError as error:
                named += str(path) in str(error)
                continue
        read += 1
        for name, values in expected.items():
            np.testing.assert_array_equal(posterior[name], values)
    assert read + named == NUM
    assert read < NUM / 10
