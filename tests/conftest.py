"""Shared by every test: double precision, two CPU devices, and where the test-only data are."""

import gc
import os
import signal
from importlib.metadata import version
from pathlib import Path

# Tracing makes millions of objects that stay: looking for garbage among them took a fifth of the time.
gc.disable()

# As the command line does; see hbm_jax.cli.
FLAGS = ["--xla_cpu_multi_thread_eigen=false"]
# Most of the time goes into compilation, so XLA optimises nothing, and does not split what it compiles over threads
# that the other worker needs. What users compile is seen by the demo, the benchmarks and `make notebooks`.
FLAGS += ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
# This halves it again on jaxlib 0.10; 0.12 is as quick without, and knows no such flag.
if version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false"]
# Workers have the flags of the process that started them: the same text, or the programs kept would not be found.
os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*os.environ.get("XLA_FLAGS", "").split(), *FLAGS]))

# Programs that several tests compile are compiled once, by whichever process comes first, and kept for the next run in
# a folder that git ignores and `make clean` empties.
os.environ.setdefault("HBM_JAX_TEST_PROGRAMS", str(Path(__file__).resolve().parents[1] / ".test_programs"))
# By the environment, so that workers, clusters and notebooks share them too.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["HBM_JAX_TEST_PROGRAMS"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# The command line would go on with the user's folder, for all later tests of the process.
os.environ["HBM_JAX_CACHE"] = "off"

# Two workers' linear algebra would wait for each other's threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from monte_carlo import MonteCarlo

# A shell starts what runs in its background deaf to Ctrl-C, and so would be the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_enable_x64", True)

# Files that take longest are begun first, so that no process is left alone with one at the end.
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
    """Look for garbage again, seldom, and not in what was imported."""
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)
    gc.enable()


def pytest_sessionfinish():
    """Do not look for garbage at the end, where pytest asks for it twice."""
    gc.freeze()


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


@pytest.fixture
def monte_carlo(request):
    """Comparisons of draws in Monte Carlo errors; tests that ask for it are those that `make test-seeds` repeats."""
    return MonteCarlo(request.node.nodeid)


def pytest_collection_modifyitems(items):
    """Sort the files whose tests take longest to the front; the order within a file stays."""
    for item in items:
        if "monte_carlo" in getattr(item, "fixturenames", ()):
            item.add_marker("statistical")
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))
