"""Safety of files: checksums of results and checkpoints, free space on the disk, and a limit on expansion.

A checksum is appended after the end of the netCDF or zip content, where programs that read these formats ignore it.
"""

import hashlib
import os
from pathlib import Path

import h5py

MARK = b"\nhbm_jax sha256 "
LENGTH = len(MARK) + 2 * hashlib.sha256().digest_size  # bytes appended
CHUNK = 2**24  # bytes read at a time
# Largest size of an expanded file: times the size of the file, or bytes, whichever is larger.
MAX_EXPANSION, MAX_EXPANDED = 20, 2**30


class DamageWarning(UserWarning):
    """Warning about a damaged file, or a file without a checksum, in which damage cannot be detected."""


def append_checksum(path: Path) -> None:
    """Append the SHA-256 checksum of a file to it."""
    checksum = MARK + _digest(path, path.stat().st_size)
    with open(path, "ab") as file:
        file.write(checksum)
        file.flush()
        os.fsync(file.fileno())


def checksum_holds(path: Path) -> bool | None:
    """Return whether a file agrees with its checksum; None if it has no checksum.

    A program that changes the file in place, such as a netCDF library that adds a group, removes the checksum.
    """
    size = path.stat().st_size - LENGTH
    if size < 0:
        return None
    with open(path, "rb") as file:
        file.seek(size)
        checksum = file.read()
    return _digest(path, size) == checksum.removeprefix(MARK) if checksum.startswith(MARK) else None


def _digest(path: Path, size: int) -> bytes:
    """Return the SHA-256 of the first ``size`` bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest().encode()


class ResultFileError(OSError):
    """A result file that is missing, was not written by hbm_jax, or is damaged."""


def require_room(path: Path, needed: int) -> None:
    """Allocate the file on the disk, or raise OSError; on a full disk the HDF5 library may crash."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, needed)
    except OSError as error:
        raise OSError(
            f"{path.parent}: expected room for a posterior of {needed / 2**20:.0f} MB; found: {error.strerror}."
        ) from error


def refuse_expansion(path: Path) -> None:
    """Raise ResultFileError if a small compressed file expands to so much that reading it could exhaust the memory."""
    sizes: list[int] = []
    with h5py.File(path) as file:
        file.visititems(lambda _, item: sizes.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    size, limit = path.stat().st_size, max(MAX_EXPANDED, MAX_EXPANSION * path.stat().st_size)
    if sum(sizes) > limit:
        raise ResultFileError(
            f"{path}: expected at most {limit / 2**20:.0f} MB of numbers in a result file of {size / 2**20:.3g} MB; "
            f"found {sum(sizes) / 2**20:.0f} MB."
        )
