"""Cache of compiled programs on disk, so that a second fit of a model is not compiled again."""

import os
import shutil
from pathlib import Path

import jax

VARIABLE = "HBM_JAX_CACHE"
MAX_BYTES = 1024**3  # largest size of the cache; a fit adds about two megabytes
_in_use: list[Path] = []  # the folder, once `use_compilation_cache` has been called
MIN_FREE = 100 * 1024**2  # on a full disk JAX writes an incomplete program, and warns of it at every later use


def cache_folder() -> Path | None:
    """Return the folder of the compiled programs; None if ``HBM_JAX_CACHE=off``.

    It is ``$HBM_JAX_CACHE``, else ``$XDG_CACHE_HOME/hbm_jax``, else ``~/.cache/hbm_jax``.
    """
    setting = os.environ.get(VARIABLE, "")
    if setting.lower() == "off":
        return None
    if setting:
        return Path(setting).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "hbm_jax"


def use_compilation_cache() -> Path | None:
    """Make JAX store every compiled program on disk, and return the folder; None if no folder can be used.

    Call it before the first JAX computation. It never raises: without a writable folder, programs are compiled each
    time.

    Examples
    --------
    >>> folder = use_compilation_cache()  # doctest: +SKIP
    """
    _in_use.clear()
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
    # A sampler is one large program and dozens of small ones, which together take longer to compile.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _in_use.append(folder)
    return folder


def folder_in_use() -> Path | None:
    """Return the folder that `use_compilation_cache` chose; None before that, or if there is none."""
    return _in_use[-1] if _in_use else None


def size(folder: Path) -> int:
    """Return the total size of the programs in a folder, in bytes."""
    return sum(status.st_size for _, status in _programs(folder))


def _programs(folder: Path):
    """Yield path and status of each file; another process may be removing files."""
    for path in folder.glob("*-cache"):
        try:
            yield path, path.stat()
        except OSError:
            continue


def _make_room(folder: Path):
    """Remove the oldest programs until the cache is no larger than `MAX_BYTES`."""
    programs = sorted(_programs(folder), key=lambda program: program[1].st_mtime)
    excess = sum(status.st_size for _, status in programs) - MAX_BYTES
    for path, status in programs:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= status.st_size
