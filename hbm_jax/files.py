"""Atomic writing of files."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces `path` when the block ends.

    If the block raises, an existing file at `path` is unchanged and the temporary file is removed.

    Examples
    --------
    >>> with atomic_write("table.csv") as part:
    ...     part.write_text("x,y\\n1,2\\n")
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(4)}.part-{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
