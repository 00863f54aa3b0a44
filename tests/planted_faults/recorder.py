"""pytest plugin (`-p recorder`): seconds, compiled programs and outcome of each test, in one JSON file per process.

The files go to the folder HBM_JAX_RECORD; without that variable nothing is recorded.
"""

import json
import os
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

FOLDER = os.environ.get("HBM_JAX_RECORD")
COMPILED = "backend_compile_duration"
_tests: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
_running = ["session"]
_begun = time.monotonic()


def pytest_configure():
    """Record the number and the durations of JAX's compilations."""
    import jax

    def listen(event, seconds, **_):
        if event.endswith(COMPILED):
            _tests[_running[0]]["programs"] += 1
            _tests[_running[0]]["compiling"] += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Take the time of one test with its fixtures."""
    _running[0] = item.nodeid
    wall = time.monotonic()
    result = yield
    _tests[item.nodeid]["seconds"] += time.monotonic() - wall
    _running[0] = "session"
    return result


def pytest_runtest_logreport(report):
    """Record the outcome of a test."""
    if report.when == "call" or report.outcome != "passed":
        _tests[report.nodeid][report.outcome] = 1


def pytest_sessionfinish():
    """Write the records of this process; each worker writes a file of its own."""
    if FOLDER:
        own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        record = {
            "wall": time.monotonic() - _begun,
            "cpu": sum(usage.ru_utime + usage.ru_stime for usage in (own, children)),
            "tests": _tests,
        }
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        Path(FOLDER).mkdir(parents=True, exist_ok=True)
        (Path(FOLDER) / f"{worker}.json").write_text(json.dumps(record))


def read(folder: Path) -> tuple[dict[str, dict[str, float]], float, float]:
    """Return each test's record, and the wall and CPU seconds of the whole run with its workers."""
    tests: dict[str, dict[str, float]] = defaultdict(dict)
    wall = cpu = 0.0
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        wall, cpu = max(wall, record["wall"]), max(cpu, record["cpu"])
        for name, values in record["tests"].items():
            tests[name].update(values)
    return tests, wall, cpu


def main(folder: str) -> None:
    """Print tests, programs compiled, seconds of compiling and of all, file by file and in sum."""
    tests, wall, cpu = read(Path(folder))
    files: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0.0])
    for name, values in tests.items():
        for total in (files[name.partition("::")[0]], files["all"]):
            total[0] += name != "session"
            for k, key in enumerate(("programs", "compiling", "seconds"), start=1):
                total[k] += values.get(key, 0)
    print(f"{'tests':>6} {'programs':>9} {'compiling':>10} {'seconds':>8}")
    for name, (number, programs, compiling, seconds) in sorted(files.items(), key=lambda item: item[1][3]):
        print(f"{number:6.0f} {programs:9.0f} {compiling:10.1f} {seconds:8.1f}  {name}")
    print(f"wall {wall:.0f} s, CPU {cpu:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1])
