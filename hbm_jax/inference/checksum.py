"""Checksums appended to result files and checkpoints, after the end of the netCDF or zip content.

Programs that read these formats ignore them.
"""

import hashlib
import os
from pathlib import Path

MARK = b"\nhbm_jax sha256 "
LENGTH = len(MARK) + 2 * hashlib.sha256().digest_size  # bytes appended
CHUNK = 2**24  # bytes read at a time


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
    """Return whether a file agrees with its checksum; None if it has none.

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
