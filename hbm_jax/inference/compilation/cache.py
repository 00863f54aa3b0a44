"""Compiled programs kept on disk, so that the second fit of the same model does not wait for the compiler again."""

import os
import shutil
from pathlib import Path

import jax

VARIABLE = "HBM_JAX_CACHE"
MAX_BYTES = 1024**3  # older programs go first; a fit leaves some two megabytes
MIN_FREE = 100 * 1024**2  # JAX leaves half a program behind where the disk is full, and warns of it ever after


def cache_folder() -> Path | None:
    """Folder of the compiled programs; None where ``HBM_JAX_CACHE=off``.

    ``$HBM_JAX_CACHE``, else ``$XDG_CACHE_HOME/hbm_jax``, else ``~/.cache/hbm_jax``.
    """
    given = os.environ.get(VARIABLE, "")
    if given.lower() == "off":
        return None
    if given:
        return Path(given).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "hbm_jax"


def use_compilation_cache() -> Path | None:
    """Have JAX keep every compiled program on disk; returns the folder, None where there is none to be had.

    To be called before the first JAX computation. Never an error: without a folder that can be written, programs are
    compiled each time.

    Examples
    --------
    >>> folder = use_compilation_cache()  # doctest: +SKIP
    """
    folder = cache_folder()
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
        _make_room(folder)
        if shutil.disk_usage(folder).free < MIN_FREE:
            return None
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A sampler is one large program and dozens of small ones, which together take longer than the large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return folder


def size(folder: Path) -> int:
    """Bytes of the programs in a folder."""
    return sum(content.st_size for _, content in _programs(folder))


def _programs(folder: Path):
    """Yield each file with what the system says of it; another process may be removing some."""
    for path in folder.glob("*-cache"):
        try:
            yield path, path.stat()
        except OSError:
            continue


def _make_room(folder: Path):
    programs = sorted(_programs(folder), key=lambda program: program[1].st_mtime)
    excess = sum(content.st_size for _, content in programs) - MAX_BYTES
    for path, content in programs:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= content.st_size
