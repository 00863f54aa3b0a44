"""Folder of the cache of compiled programs; its use by a second run is tested in test_cli."""

import os
from pathlib import Path

import jax
import pytest

from hbm_jax.cli import doctor
from hbm_jax.inference.compilation import cache as compilation_cache
from hbm_jax.inference.compilation.cache import cache_folder, size, use_compilation_cache

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


@pytest.fixture(autouse=True)
def keep_options(monkeypatch):
    for name in ("HBM_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache._in_use.clear()


def test_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/home/someone/.cache/hbm_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/fast")
    assert cache_folder() == Path("/fast/hbm_jax")
    monkeypatch.setenv("HBM_JAX_CACHE", "~/mine")
    assert cache_folder() == Path("/home/someone/mine")
    monkeypatch.setenv("HBM_JAX_CACHE", "OFF")
    assert cache_folder() is None
    assert use_compilation_cache() is None
    assert "compiled each time (HBM_JAX_CACHE=off)" in "\n".join(doctor.examine()[0])


def test_options_are_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HBM_JAX_CACHE", str(tmp_path / "deep" / "cache"))
    assert use_compilation_cache() == tmp_path / "deep" / "cache"
    assert [getattr(jax.config, name) for name in OPTIONS] == [str(tmp_path / "deep" / "cache"), 0.0, -1]
    assert (tmp_path / "deep" / "cache").is_dir()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HBM_JAX_CACHE", str(tmp_path / "file" / "cache"))
    before = jax.config.jax_compilation_cache_dir
    assert use_compilation_cache() is None
    monkeypatch.setenv("HBM_JAX_CACHE", str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert use_compilation_cache() is None
        assert "cannot be written" in doctor._cache()
    with monkeypatch.context() as patched:
        patched.setattr(compilation_cache, "MIN_FREE", 2**80)
        assert use_compilation_cache() is None
    assert jax.config.jax_compilation_cache_dir == before


def test_the_oldest_programs_make_room(tmp_path, monkeypatch):
    for age, name in enumerate(("new", "old", "oldest")):
        path = tmp_path / f"jit_{name}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "notes.txt").write_bytes(bytes(1000))
    assert size(tmp_path) == 300
    monkeypatch.setenv("HBM_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 150)
    use_compilation_cache()
    assert {path.name for path in tmp_path.iterdir()} == {"jit_new-cache", "notes.txt"}
