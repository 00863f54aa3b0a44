"""What is on disk after every block, and what a run resumes from.

A checkpoint folder holds ``run.json`` (who this run is), ``data.npz`` (its data, where they can be stored),
``start.npz`` (starting points and metric) and one ``block-000000.npz`` a block: the raw draws, and the whole state of
the sampler after them. Each file is written under another name, flushed to the disk and renamed, so it is there in full
or not at all, and a run that is killed loses the block in flight. All bear the random number of the run, so that a file
of another one is not taken for its own. Arrays and JSON only, no code.
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
from hbm_jax.inference.sampler.chains import Block

FORMAT = 1
SUM = "sha256"  # of what else run.json says
RUN_ID = "run_id"  # in each file, in arrays together with its name
RUN, DATA, START, BLOCK, LOCK = "run.json", "data.npz", "start.npz", "block-{:06d}.npz", "lock"


class CheckpointError(OSError):
    """A checkpoint that cannot be written, is not there, is in use, or belongs to another run."""


class Saved(NamedTuple):
    """One block read back.

    Attributes
    ----------
    block : Block
        Raw draws.
    state : dict of str to array
        Sampler state after the block.
    warmup : bool
        Whether the block belongs to the warm-up.
    progress : dict of str to float
        What the loop noted: seconds so far, next check.
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
        self.num_blocks = self.num_draws = 0  # of a chain, warm-up included
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / LOCK, "a")  # noqa: SIM115 - held until `close`
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: expected a folder that can be written for the checkpoint; found: {error.strerror}."
            ) from None
        if not _lock(self._lock):
            self._lock.close()
            raise CheckpointError(f"{self.folder}: expected a checkpoint no one else is using; another process is.")

    def close(self):
        """Let go of the folder."""
        self._lock.close()

    @classmethod
    def existing(cls, folder: str | os.PathLike) -> "Checkpoint":
        """Open a folder that holds a run.

        Raises
        ------
        CheckpointError
            If it does not.
        """
        if not (Path(folder) / RUN).is_file():
            raise CheckpointError(f"{folder}: expected a checkpoint folder holding {RUN}; found none.")
        return cls(folder)

    @property
    def begun(self) -> bool:
        """Whether the folder holds a run."""
        return (self.folder / RUN).exists()

    def begin(self, run: Mapping[str, Any], data: dict[str, Any] | None):
        """Write who the run is, before anything is computed."""
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
        """Change part of what `run` says."""
        self._write_run(self.run | changed)

    def _write_run(self, run):
        text = json.dumps({name: value for name, value in run.items() if name != SUM}, indent=1, default=str)
        run = json.loads(text) | {SUM: hashlib.sha256(text.encode()).hexdigest()}
        self._write(RUN, lambda file: file.write(json.dumps(run, indent=1).encode()))

    @property
    def run(self) -> dict[str, Any]:
        """What the run is, as `begin` was told.

        Raises
        ------
        CheckpointError
            If the file is damaged or of a newer version.
        """
        return read_run(self.folder)

    @functools.cached_property
    def run_id(self) -> str:
        """Random number of the run; empty for those of older versions."""
        return self.run.get(RUN_ID, "")

    def write_start(self, arrays: dict[str, Any]):
        """Write starting points and metric."""
        self._write_arrays(START, arrays)

    def read_start(self) -> dict[str, np.ndarray] | None:
        """Return starting points and metric; None if the run was stopped before it had any.

        Raises
        ------
        CheckpointError
            If the file is damaged, or missing where draws are on disk.
        """
        found = self._read(START)
        if found is None and any(self.folder.glob("block-*.npz")):
            raise CheckpointError(
                f"{self.folder}: expected {START} beside the draws; found none. Put a copy of it there."
            )
        return found

    def read_data(self) -> dict[str, np.ndarray] | None:
        """Return the stored data; None where they could not be stored.

        Raises
        ------
        CheckpointError
            If the file is damaged.
        """
        return self._read(DATA)

    def _read(self, name: str) -> dict[str, np.ndarray] | None:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return _arrays(path, self.run_id)
        except Exception as error:  # zlib, zipfile, NumPy and the format each have their own
            raise CheckpointError(
                f"{path}: expected arrays of this run written by hbm_jax; found a file that is damaged, cut short or "
                f"of another run ({error}). Put a copy of it in its place, or begin the run again."
            ) from None

    def write_block(self, saved: Saved):
        """Append a block."""
        arrays: dict[str, Any] = {f"draws/{name}": value for name, value in saved.block._asdict().items()}
        arrays |= {f"state/{name}": value for name, value in saved.state.items()}
        arrays |= {f"progress/{name}": np.asarray(value) for name, value in saved.progress.items()}
        arrays |= {"warmup": np.asarray(saved.warmup), "draws_before": np.asarray(self.num_draws)}
        self._write_arrays(BLOCK.format(self.num_blocks), arrays)
        self.num_blocks += 1
        self.num_draws += saved.block.energy.shape[1]

    def blocks(self) -> Iterator[Saved]:
        """Read every block in order.

        A file that is missing or cannot be read, after a fault of the disk, or that does not continue the one before,
        is set aside together with those after it, with a `DamageWarning`: the sampler's state is in every block, so the
        run goes on from the one before and draws the same again.
        """
        self.num_blocks = self.num_draws = 0
        while (path := self.folder / BLOCK.format(self.num_blocks)).exists():
            try:
                arrays = _arrays(path, self.run_id)
                if arrays.get("draws_before", self.num_draws) != self.num_draws:  # older versions wrote none
                    raise ValueError("it follows other draws")
                saved = Saved(
                    Block(**_section(arrays, "draws/")),
                    _section(arrays, "state/"),
                    bool(arrays["warmup"]),
                    {name: float(value) for name, value in _section(arrays, "progress/").items()},
                )
            except Exception as error:  # zlib, zipfile, NumPy and the format each have their own
                self._set_aside(f"cannot be used ({error})")
                return
            self.num_blocks += 1
            self.num_draws += saved.block.energy.shape[1]
            yield saved
        self._set_aside("is missing")

    def _set_aside(self, why: str):
        """Rename the next block and those after it, if there are any."""
        wanted = BLOCK.format(self.num_blocks)
        later = [path for path in sorted(self.folder.glob("block-*.npz")) if path.name >= wanted]
        for path in later:
            path.replace(path.with_suffix(".damaged"))
        if later:
            warnings.warn(
                f"{self.folder / wanted}: expected the draws after the first {self.num_draws} of a chain; found that "
                f"it {why}. It and later blocks are set aside, and drawn again.",
                DamageWarning,
                stacklevel=2,
            )

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]):
        mine = {RUN_ID: np.asarray(f"{name} of {self.run_id}")} if self.run_id else {}
        self._write(name, lambda file: np.savez(file, **arrays, **mine))  # type: ignore[arg-type]

    def _write(self, name: str, write):
        """Write a file in full or not at all."""
        try:
            with atomic_write(self.folder / name) as part:
                with open(part, "wb") as file:
                    write(file)
                    if name == RUN:  # which holds its own checksum
                        file.flush()
                        os.fsync(file.fileno())
                if name != RUN:
                    append_checksum(part)  # and flushes all of the file to the disk
            _sync_folder(self.folder)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the checkpoint could not be written: {error.strerror or error}. Everything before it "
                f'is on disk: make room, then hbm_jax.resume("{self.folder}").'
            ) from error


def read_run(folder: Path) -> dict[str, Any]:
    """Return what the run of a checkpoint folder is; see `Checkpoint.run`."""
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
    written = checksum is not None or RUN_ID in run  # older versions wrote neither
    if written and checksum != hashlib.sha256(text.encode()).hexdigest():
        raise CheckpointError(
            f"{path}: expected the file as it was written; found one that was changed or is damaged: its checksum "
            "differs. Put a copy of it in its place."
        )
    missing = [name for name in ("program", "data", "options") if not isinstance(run.get(name), dict)]
    if missing:
        raise CheckpointError(f"{path}: expected what the run is; found none of its {' and '.join(missing)}.")
    return run


def _arrays(path: Path, run_id: str) -> dict[str, np.ndarray]:
    """Read all arrays.

    Raises
    ------
    ValueError
        Where the checksum differs, or the run; older versions wrote neither. For compressed arrays, which hbm_jax does
        not write, and which may be a thousand times as large as their file.
    """
    whole = checksum_holds(path)
    with zipfile.ZipFile(path) as members:
        if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
            raise ValueError("its arrays are compressed")
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as members:
        arrays = {name: members[name] for name in members.files}
    of = str(arrays.pop(RUN_ID, ""))
    if whole is False or (of and not whole):
        raise ValueError("its checksum differs")
    name, _, of_run = of.partition(" of ")
    if of_run != run_id:
        raise ValueError("it is of another run")
    if of and name != path.name:
        raise ValueError(f"it was written as {name}")
    return arrays


def _section(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _lock(file) -> bool:
    """Lock a file for this process; released by the system however the process ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _sync_folder(folder: Path):
    """Make a rename survive a power cut, where the system offers that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
