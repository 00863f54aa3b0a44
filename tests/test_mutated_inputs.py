"""Hundreds of files, tables, formulas and run folders with something wrong in them.

Each ends in a result or in a named error, within limits of time and memory, and no other value ever comes back: what
is read is what an independent reader finds in the same bytes.
"""

import contextlib
import csv
import io
import json
import resource
import shutil
import signal
import warnings

import h5py
import numpy as np
import pytest
from astropy.io import fits
from monte_carlo import seed
from spectra.small_ogip import small_spectrum, spoilt

import hbm_jax
from hbm_jax import runs
from hbm_jax.configuration import ConfigError, defaults, read_toml, sample_keywords
from hbm_jax.data import DataError, RegressionData, read_relation
from hbm_jax.inference import CheckpointError, ResultFileError
from hbm_jax.inference.sampler.chains import Chains
from hbm_jax.inference.sampler.checkpoint import Checkpoint
from hbm_jax.inference.sampler.fingerprint import differences, identify
from hbm_jax.inference.sampler.initialisation import Start
from hbm_jax.spectra.ogip.pha import read_pha
from hbm_jax.spectra.ogip.writing import write_pha

pytestmark = pytest.mark.long

NUM = 300
NUM_FOLDERS = 150  # each is copied, and read in three ways
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


GROUPS = ("posterior", "unconstrained_posterior", "sample_stats", "constant_data")
NAMED = (ResultFileError, CheckpointError, ConfigError)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Run folders of the same model and data with two seeds, in several blocks."""
    model, schools = hbm_jax.models.Normal(latents="noncentred"), hbm_jax.data.load_eight_schools()
    folders = [tmp_path_factory.mktemp("runs") / name for name in ("sound", "other")]
    advance = Chains.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chains, "advance", lambda self, num_draws: advance(self, min(num_draws, 20)))
        for number, folder in enumerate(folders):
            options = {"seed": number, "num_chains": 2, "num_warmup": 40, "num_samples": 60, "trajectory_length": 1.5}
            config = defaults() | {"model": {"name": "normal"}, "sample": defaults()["sample"] | options}
            with runs.new_checkpoint(folder, config) as checkpoint:
                fit = hbm_jax.sample(model, schools, checkpoint=checkpoint, progress=False, **sample_keywords(config))
            runs.write(fit, folder, config)
    return folders


def of_posterior(folder):
    """Return the result of `hbm_jax.load` for a run folder, as plain values."""
    fit = hbm_jax.load(folder)
    arrays = {f"{group}/{name}": v.to_numpy() for group in GROUPS for name, v in fit.tree[group].to_dataset().items()}
    return arrays | {"model": fit.program.to_config(), "run": fit.run, "verdict": str(fit.verdict)}


def of_checkpoint(folder):
    """Return what `hbm_jax.resume` reads from a run folder before it draws, as plain values."""
    program, args = runs.rebuild_program(runs.checkpoint_of(folder) or folder)
    with contextlib.closing(Checkpoint.existing(runs.checkpoint_of(folder))) as store:
        run, start = store.run, store.read_start()
        blocks = [saved._replace(block=saved.block._asdict()) for saved in store.blocks()]
    assert not differences(identify(program, args, run["options"]), run)
    if start is not None:
        start = Start.from_arrays(start).to_arrays() | {"potential": start["potential"]}
    return {"model": program.to_config(), "run": run, "start": start, "blocks": blocks}


def of_configuration(folder):
    """Return the configurations of a run folder, which the report and `hbm-jax resume` read."""
    texts = {}
    for part in (folder, folder / "checkpoint"):
        path = runs.config_of(part)
        texts[part.name] = None if path is None else read_toml(path)
    return {"texts": [text for text in texts.values() if text is not None]}


def mutated(path, kind, rng, other):
    """Change one file of a run folder."""
    content = bytearray(path.read_bytes())
    if kind == "bits":
        for at in rng.integers(0, max(len(content), 1), int(rng.choice([1, 6])) if content else 0):
            content[at] ^= 1 << int(rng.integers(0, 8))
    elif kind == "cut":
        del content[int(rng.integers(0, len(content) + 1)) :]
    elif kind == "removed":
        path.unlink()
        return
    elif kind == "of another run":
        content = (other / path.relative_to(path.parents[0 if path.parent.name == "changed" else 1])).read_bytes()
    elif kind == "another file":
        files = sorted(file for file in path.parent.iterdir() if file.suffix == path.suffix)
        content = files[rng.integers(0, len(files))].read_bytes()
    elif path.suffix == ".json":
        run = json.loads(content)
        table = run[rng.choice(["program", "options", "stop", "data"])] if rng.uniform() < 0.5 else run
        del table[rng.choice(list(table))]
        content = json.dumps(run, indent=1).encode()
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        del kept[rng.choice(list(kept))]
        np.savez(path, **kept)
        return
    elif path.suffix == ".nc":
        with h5py.File(path, "r+") as file:
            group = file[rng.choice(list(file))] if rng.uniform() < 0.5 else file.attrs
            del group[rng.choice(list(group))]
        return
    else:
        lines = content.splitlines(keepends=True)
        del lines[rng.integers(0, max(len(lines), 1)) :][:1]
        content = b"".join(lines)
    path.write_bytes(content)


def test_run_folders(tmp_path, two_runs):
    rng = np.random.default_rng(seed(4))
    sound, other = two_runs
    parts, read_well = ({of_posterior: 0, of_checkpoint: 0, of_configuration: 0} for _ in range(2))
    expected = {read: read(sound) for read in parts}
    of_other = of_posterior(other)
    files = [path.relative_to(sound) for path in sorted(sound.rglob("*")) if path.is_file()]
    kinds = ("bits", "cut", "removed", "of another run", "another file", "keys")
    changed = tmp_path / "changed"
    for number in range(NUM_FOLDERS):
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(sound, changed)
        which, kind = files[number % len(files)], str(rng.choice(kinds))
        mutated(changed / which, kind, rng, other)
        for read in parts:
            with limits(), warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    found = read(changed)
                except NAMED as error:
                    parts[read] += str(changed) in str(error)
                    continue
            read_well[read] += 1
            right = expected[read]
            if any("found that of another run" in str(warning.message) for warning in told):
                assert (which.name, kind) in [(name, "of another run") for name in ("posterior.nc", "run.json")]
                right = of_other if which.name == "posterior.nc" else right
            if read is of_configuration and kind == "of another run":  # which a reader is trusted to see
                continue
            for some in {"blocks", "texts"} & set(found):  # from a damaged block on, all are set aside
                assert some == "texts" or told or len(found[some]) >= len(right[some]) - 1
                right = right | {some: right[some][: len(found[some])]}
            np.testing.assert_equal(found, right, err_msg=f"{which}, {kind}")
    for read, errors in parts.items():
        assert errors + read_well[read] == NUM_FOLDERS
        assert 0 < errors < NUM_FOLDERS / 2
