"""Reading of files that may be compressed or damaged, up to a largest size."""

import contextlib
import gzip
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from hbm_jax.validation import DataError

__all__ = ["MAX_BYTES", "is_compressed", "read_bytes", "read_text", "readable", "refuse_expansion"]

MAX_BYTES = 1 << 30  # largest decompressed size: 100 kB of gzip can be 100 MB of zeros
GZIP = b"\x1f\x8b"  # first bytes


@contextlib.contextmanager
def readable(path: Path, description: str) -> Iterator[None]:
    """Convert an exception of a library that reads a damaged file to a `DataError` that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) and str(path) in str(error):
            raise
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        raise DataError(
            f"{path}: expected {description} that can be read, found one that cannot: {kind}{error}"
        ) from error


def is_compressed(path: Path) -> bool:
    """Return whether a file is gzip, by its name or its first bytes."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".gz" or file.read(len(GZIP)) == GZIP


def refuse_expansion(path: Path) -> None:
    """Raise DataError if a file holds more than `MAX_BYTES` decompressed, before astropy or NumPy unpacks it.

    Raises
    ------
    DataError
        If the contents are larger, or the compression is bzip2, xz or compress. Damaged files pass: their reader
        reports the damage.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith((b"BZh", b"\xfd7zXZ", b"\x1f\x9d")):
        raise DataError(f"{path}: expected no compression other than gzip; found bzip2, xz or compress.")
    total = 0
    with contextlib.suppress(OSError, EOFError, zlib.error, zipfile.BadZipFile):
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as members:
                total = sum(member.file_size for member in members.infolist())
        elif start.startswith(GZIP):
            with gzip.open(path, "rb") as unpacked:
                while total <= MAX_BYTES and (block := unpacked.read(1 << 22)):
                    total += len(block)
    if total > MAX_BYTES:
        raise DataError(f"{path}: expected at most {MAX_BYTES >> 20} MiB when decompressed; found more.")


def read_bytes(path: Path) -> bytes:
    """Return the contents of a file, decompressed.

    Raises
    ------
    DataError
        For a compressed file that is damaged or holds more than `MAX_BYTES`. The message does not name the file.
    """
    if not is_compressed(path):
        return path.read_bytes()
    blocks, total = [], 0
    try:
        with gzip.open(path, "rb") as file:
            while block := file.read(1 << 22):
                blocks.append(block)
                total += len(block)
                if total > MAX_BYTES:
                    raise DataError(f"expected at most {MAX_BYTES >> 20} MiB when decompressed; found more.")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"expected a whole gzip file, found one that cannot be decompressed: {error}.") from error
    return b"".join(blocks)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, decompressed.

    Raises
    ------
    DataError
        As `read_bytes`, and for bytes that are not valid UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"expected text in UTF-8, found bytes that do not decode: {error}.") from error
