"""Configuration of all tests: double precision, two CPU devices, cached programs, and the folder of test-only data."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

# Tracing makes millions of objects that are kept: garbage collection took a fifth of the time.
gc.disable()

# As the command line does; see hbm_jax.cli.
FLAGS = ["--xla_cpu_multi_thread_eigen=false"]
# Most of the time is compilation. XLA therefore optimises nothing, and compiles in one thread, because the other worker
# needs the second core. Optimised programs are tested by the demo, the benchmarks and `make notebooks`.
FLAGS += ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
# On jaxlib 0.10 this halves the compilation time again; 0.12 does not have the flag and is as fast without it.
if version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
# Workers inherit these flags. Their text must be the same in all processes, because it is part of the key of the cache.
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*os.environ.get("XLA_FLAGS", "").split(), *FLAGS]))

# Cache of compiled programs, for all processes of this run and for the next run; git ignores the folder, and
# `make clean` empties it.
os.environ.setdefault("HBM_JAX_TEST_PROGRAMS", str(Path(__file__).resolve().parents[1] / ".test_programs"))
# Set in the environment, so that workers, clusters and notebooks use the cache too.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["HBM_JAX_TEST_PROGRAMS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Otherwise a test of the command line would switch to the user's cache, for all later tests of the process.
os.environ["HBM_JAX_CACHE"] = "off"

# With more threads the linear algebra of two workers competes for two cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from monte_carlo import MonteCarlo

# A shell starts background processes with SIGINT ignored, and the programs that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)

# The files that take longest are started first, so that both workers are busy until the end.
FIRST = (
    "test_notebooks.py",
    "test_report_in_a_browser.py",
    "test_afterglow.py",
    "test_cli.py",
    "test_distribution_laws.py",
    "test_batch.py",
    "test_checkpoint.py",
    "test_sampling.py",
    "test_whim.py",
    "test_derivatives.py",
    "test_calibration.py",
    "test_centering.py",
)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("HBM_JAX_TEST_DATA", REPOSITORY.parent / "shared" / "data"))


def pytest_collection_finish():
    """Enable garbage collection again, rarely, and not of imported objects."""
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)
    gc.enable()


def pytest_sessionfinish():
    """Leave nothing to collect at the end, where pytest collects garbage twice."""
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data():
    """Return the path of a test-only data file; if it is absent the test is skipped, or fails in CI."""

    def locate(relative):
        path = SHARED_DATA / relative
        if not path.exists():
            reason = f"test-only data file {relative} not found under {SHARED_DATA} (set HBM_JAX_TEST_DATA)"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        return path

    return locate


@pytest.fixture
def monte_carlo(request):
    """Comparisons of draws in Monte Carlo errors; `make test-seeds` repeats the tests that use this fixture."""
    return MonteCarlo(request.node.nodeid)


def pytest_collection_modifyitems(items):
    """Mark the statistical tests, and sort the files of `FIRST` to the front; the order within a file is unchanged."""
    for item in items:
        if "monte_carlo" in getattr(item, "fixturenames", ()):
            item.add_marker("statistical")
    order = {name: position for position, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))
