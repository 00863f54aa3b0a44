"""Shared by every test: double precision, two CPU devices, and where the test-only data are."""

import os
import tempfile
from pathlib import Path

# As the command line does; see hbm_jax.cli.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()

# Programs that several tests compile are compiled once, by whichever process comes first.
os.environ.setdefault("HBM_JAX_TEST_PROGRAMS", tempfile.mkdtemp(prefix="hbm-jax-test-programs-"))

import jax
import pytest

jax.config.update("jax_compilation_cache_dir", os.environ["HBM_JAX_TEST_PROGRAMS"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("HBM_JAX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data():
    """Path of a test-only data file; the test is skipped where it is absent, and fails there in CI."""

    def locate(relative):
        path = SHARED_DATA / relative
        if not path.exists():
            reason = f"test-only data file {relative} not found under {SHARED_DATA} (set HBM_JAX_TEST_DATA)"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return locate
