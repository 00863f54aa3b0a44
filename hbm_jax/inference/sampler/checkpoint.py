"""Checkpoint folders, from which a run resumes.

A checkpoint folder holds ``run.json`` (identity and options of the run), ``data.npz`` (the data, if they can be
stored), ``start.npz`` (starting points and metric) and one file ``block-000000.npz`` per block, with the raw draws and
the complete state of the sampler after them. Files are written atomically: under another name, flushed to the disk,
then renamed. A run that is killed loses only the current block. Every file contains the random identifier of its run,
so that files of different runs cannot be mixed up. The files hold arrays and JSON only, no code.
"""

import contextlib
import functools
import hashlib
import json
import os
import secrets
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hbm_jax.files import atomic_write
from hbm_jax.inference.checksum import DamageWarning, append_checksum, checksum_holds
from hbm_jax.inference.sampler.kernels.protocol import Block

FORMAT = 1
SUM = "sha256"  # key of the checksum of the other entries of run.json
RUN_ID = "run_id"  # key of the identifier; files of arrays store it with their name
RUN, DATA, START, BLOCK, LOCK = "run.json", "data.npz", "start.npz", "block-{:06d}.npz", "lock"


class CheckpointError(OSError):
    """A checkpoint that cannot be written, is missing or in use, or belongs to another run."""


class Saved(NamedTuple):
    """A stored block.

    Attributes
    ----------
    block : Block
        Raw draws.
    state : dict of str to array
        Sampler state after the block.
    warmup : bool
        Whether the block belongs to the warm-up.
    progress : dict of str to float
        State of the loop: duration so far, seconds per draw, next convergence check.
    """

    block: Block
    state: dict[str, np.ndarray]
    warmup: bool
    progress: dict[str, float]


class Checkpoint:
    """A checkpoint folder, locked while this process uses it.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    CheckpointError
        If it cannot be written, or another process is using it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.num_blocks = self.num_draws = 0  # num_draws: per chain, warm-up included
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "a")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: expected a folder that can be written for the checkpoint; found: {error.strerror}."
            ) from None
        if not _lock(self._lock):
            self._lock.close()
            raise CheckpointError(
                f"{self.folder}: expected a checkpoint that is not in use; another process is using it."
            )

    def close(self):
        """Release the lock of the folder."""
        self._lock.close()

    @classmethod
    def existing(cls, folder: str | os.PathLike) -> "Checkpoint":
        """Open a folder that holds a run.

        Raises
        ------
        CheckpointError
            If it does not hold a run.
        """
        if not (Path(folder) / RUN).is_file():
            raise CheckpointError(f"{folder}: expected a checkpoint folder holding {RUN}; found none.")
        return cls(folder)

    @property
    def begun(self) -> bool:
        """True if the folder holds a run."""
        return (self.folder / RUN).exists()

    def begin(self, run: Mapping[str, Any], data: dict[str, Any] | None):
        """Write identity, options and data of a new run; raise CheckpointError if the folder already holds one."""
        if self.begun:
            raise CheckpointError(
                f"{self.folder}: expected a new or empty checkpoint folder; found another run in it. "
                f'Continue that one with hbm_jax.resume("{self.folder}"), or choose another folder.'
            )
        self.run_id = secrets.token_hex(8)
        if data is not None:
            self._write_arrays(DATA, data)
        self._write_run({"format": FORMAT, RUN_ID: self.run_id} | dict(run))

    def update(self, **changed):
        """Replace entries of the description of the run."""
        self._write_run(self.run | changed)

    def _write_run(self, run):
        """Write the description of the run, with its checksum."""
        text = json.dumps({name: value for name, value in run.items() if name != SUM}, indent=1, default=str)
        run = json.loads(text) | {SUM: hashlib.sha256(text.encode()).hexdigest()}
        self._write(RUN, lambda file: file.write(json.dumps(run, indent=1).encode()))

    @property
    def run(self) -> dict[str, Any]:
        """Description of the run, as passed to `begin`.

        Raises
        ------
        CheckpointError
            If the file is damaged or of a newer version.
        """
        return read_run(self.folder)

    @functools.cached_property
    def run_id(self) -> str:
        """Random identifier of the run; empty for runs of older versions."""
        return self.run.get(RUN_ID, "")

    def write_start(self, arrays: dict[str, Any]):
        """Write starting points and metric."""
        self._write_arrays(START, arrays)

    def read_start(self) -> dict[str, np.ndarray] | None:
        """Return starting points and metric; None if the run stopped before they were written.

        Raises
        ------
        CheckpointError
            If the file is damaged, or missing although draws are on disk.
        """
        arrays = self._read(START)
        if arrays is None and any(self.folder.glob("block-*.npz")):
            raise CheckpointError(
                f"{self.folder}: expected {START} beside the draws; found none. Restore it from a backup."
            )
        return arrays

    def read_data(self) -> dict[str, np.ndarray] | None:
        """Return the stored data; None if they could not be stored.

        Raises
        ------
        CheckpointError
            If the file is damaged.
        """
        return self._read(DATA)

    def _read(self, name: str) -> dict[str, np.ndarray] | None:
        """Read the arrays of a file of the folder; None if there is no such file."""
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return _arrays(path, self.run_id)
        except Exception as error:  # zlib, zipfile, NumPy and the format each raise their own
            raise CheckpointError(
                f"{path}: expected arrays of this run written by hbm_jax; found a file that is damaged, cut short or "
                f"of another run ({error}). Restore it from a backup, or start the run again."
            ) from None

    def write_block(self, saved: Saved):
        """Write the next block."""
        arrays: dict[str, Any] = {f"draws/{name}": value for name, value in saved.block._asdict().items()}
        arrays |= {f"state/{name}": value for name, value in saved.state.items()}
        arrays |= {f"progress/{name}": np.asarray(value) for name, value in saved.progress.items()}
        arrays |= {"warmup": np.asarray(saved.warmup), "draws_before": np.asarray(self.num_draws)}
        self._write_arrays(BLOCK.format(self.num_blocks), arrays)
        self.num_blocks += 1
        self.num_draws += saved.block.energy.shape[1]

    def blocks(self) -> Iterator[Saved]:
        """Yield all blocks in order.

        If a file is missing, cannot be read or does not continue the previous block, all files from there on are
        renamed, with a `DamageWarning`. Every block holds the state of the sampler, so the run continues from the last
        intact block and repeats the same draws.
        """
        self.num_blocks = self.num_draws = 0
        while (path := self.folder / BLOCK.format(self.num_blocks)).exists():
            try:
                arrays = _arrays(path, self.run_id)
                if arrays.get("draws_before", self.num_draws) != self.num_draws:  # older versions did not store it
                    raise ValueError("it follows other draws")
                saved = Saved(
                    Block(**_section(arrays, "draws/")),
                    _section(arrays, "state/"),
                    bool(arrays["warmup"]),
                    {name: float(value) for name, value in _section(arrays, "progress/").items()},
                )
            except Exception as error:  # zlib, zipfile, NumPy and the format each raise their own
                self._set_aside(f"cannot be used ({error})")
                return
            self.num_blocks += 1
            self.num_draws += saved.block.energy.shape[1]
            yield saved
        self._set_aside("is missing")

    def _set_aside(self, problem: str):
        """Rename the file of the next block, if it exists, and all later ones; warn of the problem."""
        first = BLOCK.format(self.num_blocks)
        unusable = [path for path in sorted(self.folder.glob("block-*.npz")) if path.name >= first]
        for path in unusable:
            path.replace(path.with_suffix(".damaged"))
        if unusable:
            warnings.warn(
                f"{self.folder / first}: expected the draws after the first {self.num_draws} of a chain; found that "
                f"the file {problem}. This and later blocks are renamed, and their draws are repeated.",
                DamageWarning,
                stacklevel=2,
            )

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]):
        """Write arrays with the identifier of the run."""
        identifier = {RUN_ID: np.asarray(f"{name} of {self.run_id}")} if self.run_id else {}
        self._write(name, lambda file: np.savez(file, **arrays, **identifier))  # type: ignore[arg-type]

    def _write(self, name: str, write):
        """Write a file atomically."""
        try:
            with atomic_write(self.folder / name) as part:
                with open(part, "wb") as file:
                    write(file)
                    if name == RUN:  # run.json contains its checksum
                        file.flush()
                        os.fsync(file.fileno())
                if name != RUN:
                    append_checksum(part)  # also flushes the file to the disk
            _sync_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the checkpoint could not be written: {error.strerror or error}. Earlier blocks are "
                f'on disk: make room, then hbm_jax.resume("{self.folder}").'
            ) from error


def read_run(folder: Path) -> dict[str, Any]:
    """Return the description of the run in a checkpoint folder; see `Checkpoint.run`."""
    path = folder / RUN
    try:
        run = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON written by hbm_jax; found something else: {error}.") from None
    if not isinstance(run, dict) or not isinstance(run.get("format"), int):
        raise CheckpointError(f"{path}: expected JSON written by hbm_jax; found other JSON, without a format.")
    if run["format"] > FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}; found {run['format']}, of a newer hbm_jax.")
    checksum = run.pop(SUM, None)
    text = json.dumps(run, indent=1)
    has_checksum = checksum is not None or RUN_ID in run  # older versions wrote neither
    if has_checksum and checksum != hashlib.sha256(text.encode()).hexdigest():
        raise CheckpointError(
            f"{path}: expected an unchanged file; found one that was changed or is damaged: its checksum differs. "
            "Restore it from a backup."
        )
    missing = [name for name in ("program", "data", "options") if not isinstance(run.get(name), dict)]
    if missing:
        raise CheckpointError(f"{path}: expected a description of the run; found no {' and no '.join(missing)}.")
    return run


def _arrays(path: Path, run_id: str) -> dict[str, np.ndarray]:
    """Read all arrays of a file.

    Raises
    ------
    ValueError
        If the checksum or the identifier of the run differs (older versions wrote neither), or if arrays are
        compressed: hbm_jax writes none, and they may expand to a thousand times the size of the file.
    """
    checksum_ok = checksum_holds(path)
    with zipfile.ZipFile(path) as members:
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
            raise ValueError("its arrays are compressed")
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
        arrays = {name: members[name] for name in members.files}
    label = str(arrays.pop(RUN_ID, ""))
    if checksum_ok is False or (label and not checksum_ok):
        raise ValueError("its checksum differs")
    name, _, label_run = label.partition(" of ")
    if label_run != run_id:
        raise ValueError("it belongs to another run")
    if label and name != path.name:
        raise ValueError(f"it was written as {name}")
    return arrays


def _section(arrays, prefix):
    """Return the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _lock(file) -> bool:
    """Lock a file for this process; the system releases the lock when the process ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True


def _sync_folder(folder: Path):
    """Flush a rename to the disk, if the system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
