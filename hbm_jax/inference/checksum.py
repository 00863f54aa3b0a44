"""A checksum behind the end of a result file or checkpoint, where programs that read netCDF or zip do not look."""

import hashlib
import os
from pathlib import Path

MARK = b"\nhbm_jax sha256 "
LENGTH = len(MARK) + 2 * hashlib.sha256().digest_size  # of what is appended
CHUNK = 2**24


class DamageWarning(UserWarning):
    """A file that is damaged, or whose damage could not be seen: which, and what is done about it."""


def append_checksum(path: Path) -> None:
    """Append the checksum of all that a file holds."""
    written = MARK + _digest(path, path.stat().st_size)
    with open(path, "ab") as file:
        file.write(written)
        file.flush()
        os.fsync(file.fileno())


def checksum_holds(path: Path) -> bool | None:
    """Whether a file is as it was when its checksum was appended; None if it has none.

    A program that changes the file in place, as netCDF libraries do to add a group, takes the checksum away.
    """
    size = path.stat().st_size - LENGTH
    if size < 0:
        return None
    with open(path, "rb") as file:
        file.seek(size)
        written = file.read()
    return _digest(path, size) == written.removeprefix(MARK) if written.startswith(MARK) else None


def _digest(path: Path, size: int) -> bytes:
    """SHA-256 of the first bytes of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (chunk := file.read(min(CHUNK, size))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest().encode()
