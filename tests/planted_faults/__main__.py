"""Plant faults in the package, one at a time, and see whether the tests notice.

    python tests/planted_faults map              one run of the suite that writes down which tests reach each line
    python tests/planted_faults run              every fault of faults.json, by the tests that reach its lines
    python tests/planted_faults run --fresh 20   as many faults that nobody has seen, drawn with a seed of its own
    python tests/planted_faults draw             draw faults.json

`make planted-faults` does the first two. Each fault is planted in a copy of the working tree, where the tests that
reach the changed statement run, the quickest first, until one fails. Tests of one file share what the first of them
traced or sampled, so a fault that passes is tried on the other tests of these files too. The default suite comes
first, `long` after it. A test that takes ten times as long as without the fault has failed as well.
"""

import argparse
import dataclasses
import json
import os
import queue
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import recorder
from rules import KINDS, Fault, draw, in_function, plant

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIST = HERE / "faults.json"
SUITES = {"default": (), "long": ("-m", "long")}
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
COPIED = ("hbm_jax", "tests", "notebooks", "docs", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md")
COPIED += ("CITATION.cff", "Makefile", "LICENSE")
IGNORED = shutil.ignore_patterns("__pycache__", "_build", ".ipynb_checkpoints")
CONFIGURATION = """
[run]
source = hbm_jax
context = ${PYTEST_CURRENT_TEST-}
parallel = True
concurrency = multiprocessing,thread
sigterm = True
patch = subprocess
"""


def make_map(folder: Path, suite: str) -> None:
    """Run a suite under coverage; `folder/map-SUITE.json` holds seconds by test and tests by line."""
    shutil.rmtree(folder / suite, ignore_errors=True)
    (folder / suite).mkdir(parents=True)
    configuration = folder / suite / "coveragerc"
    configuration.write_text(CONFIGURATION)
    command = [sys.executable, "-m", "pytest", "-q", *SIDE_BY_SIDE, *SUITES[suite], "-p", "recorder"]
    command += ["--cov", f"--cov-config={configuration}", "--cov-context=test", "--cov-report="]
    environment = os.environ | {
        "COVERAGE_FILE": str(folder / suite / "coverage"),
        "HBM_JAX_RECORD": str(folder / suite / "record"),
        "PYTHONPATH": str(HERE),
    }
    subprocess.run(command, cwd=ROOT, env=environment, check=False)
    gather(folder, suite)


def gather(folder: Path, suite: str) -> None:
    """Combine what coverage and recorder wrote into one map."""
    from coverage.numbits import numbits_to_nums

    tests, _, _ = recorder.read(folder / suite / "record")
    reached: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for data in (folder / suite).glob("coverage*"):
        if data.name == "coveragerc":
            continue
        with sqlite3.connect(data) as base:
            rows = base.execute(
                "select file.path, context.context, numbits from line_bits join file on file_id = file.id "
                "join context on context_id = context.id"
            )
            for path, context, numbits in rows:
                # "|" stands before the phase of pytest-cov's contexts, " (" before that of a child process.
                name = context.strip("|")
                name = name.rpartition("|")[0] or name.rpartition(" (")[0]
                if name in tests:
                    for line in numbits_to_nums(numbits):
                        reached[path[path.rindex("hbm_jax/") :]][line].add(name)
    names = sorted(tests.keys() - {"session"})
    number = {name: i for i, name in enumerate(names)}
    lines = {
        path: {line: sorted(number[name] for name in found) for line, found in sorted(by_line.items())}
        for path, by_line in sorted(reached.items())
    }
    seconds = [round(tests[name].get("seconds", 0.0), 3) for name in names]
    failed = [name for name in names if tests[name].get("failed")]
    for name in failed:
        print(f"fails without a fault, and is left out: {name}")
    made = {"tests": names, "seconds": seconds, "failed": failed, "lines": lines}
    (folder / f"map-{suite}.json").write_text(json.dumps(made))


class Map:
    """Which tests reach which lines, and how long each takes."""

    def __init__(self, path: Path):
        made = json.loads(path.read_text())
        self.names, self.seconds, self.lines = made["tests"], made["seconds"], made["lines"]
        self.failed = set(made["failed"])

    def of(self, path: str, first: int, last: int) -> list[list[str]]:
        """Tests that reach a statement, the quickest first; and the others of their files.

        `first` of 0 means any line of the file.
        """
        lines = self.lines.get(path, {})
        found = {test for line, tests in lines.items() if not first or first <= int(line) <= last for test in tests}
        files = {self.names[test].partition("::")[0] for test in found}
        others = {i for i, name in enumerate(self.names) if name.partition("::")[0] in files} - found
        return [
            [
                self.names[test]
                for test in sorted(some, key=self.seconds.__getitem__)
                if self.names[test] not in self.failed
            ]
            for some in (found, others)
        ]

    def time(self, names: list[str]) -> float:
        """Seconds that some tests took."""
        seconds = dict(zip(self.names, self.seconds, strict=True))
        return sum(seconds[name] for name in names)


def first_failure(copy: Path, tests: list[str], limit: float, programs: str) -> str | None:
    """Run tests in a copy of the tree until one fails; returns which, or None."""
    if not tests:
        return None
    names = copy / "tests-to-run"
    names.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=--strict-markers", f"@{names}"]
    environment = os.environ | {"PYTHONPATH": str(copy), "HBM_JAX_TEST_PROGRAMS": programs}
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            env=environment,
            timeout=limit,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except subprocess.TimeoutExpired:
        return "takes too long"
    if done.returncode in (0, 5):
        return None
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failures[0][:300] if failures else done.stdout.strip().splitlines()[-1][:300]


def try_fault(fault: Fault, copy: Path, maps: dict[str, Map], programs: str) -> dict[str, str | None]:
    """Suite by suite, the test that catches the fault; None where none does, and nothing after the first that does."""
    source = (copy / fault.path).read_bytes()
    inside = in_function(fault, copy)
    first, last = plant(fault, copy)
    try:
        caught: dict[str, str | None] = {}
        for suite, known in maps.items():
            caught[suite] = None
            for tests in known.of(fault.path, first if inside else 0, last):
                caught[suite] = caught[suite] or first_failure(copy, tests, 60 + 10 * known.time(tests), programs)
            if caught[suite]:
                break
        return caught
    finally:
        (copy / fault.path).write_bytes(source)


def copy_tree(to: Path) -> Path:
    """Copy what the tests need; the copy stands where `../shared` of the tree is not, so its place is told."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=IGNORED)
        elif source.exists():
            shutil.copy2(source, to / name)
    return to


def run(faults: list[Fault], folder: Path, suites: list[str], processes: int, out: Path | None) -> None:
    """Try faults side by side and tell of each as it ends; then the shares."""
    os.environ.setdefault("HBM_JAX_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    maps = {suite: Map(folder / f"map-{suite}.json") for suite in suites}
    waiting: queue.Queue[tuple[int, Fault]] = queue.Queue()
    for numbered in enumerate(faults):
        waiting.put(numbered)
    results: dict[int, dict] = {}
    programs = str(folder / "programs")
    begun = time.monotonic()

    def work(copy: Path) -> None:
        while True:
            try:
                i, fault = waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            try:
                caught: dict[str, str | None] = try_fault(fault, copy, maps, programs)
            except LookupError as error:
                caught = {"gone": str(error)}
            seconds = round(time.monotonic() - start, 1)
            results[i] = {**dataclasses.asdict(fault), "caught": caught, "seconds": seconds}
            word = next((f"{suite}: {test}" for suite, test in caught.items() if test), "NOT CAUGHT")
            print(
                f"{len(results):3}/{len(faults)} {seconds:6.1f} s  {fault.kind:10} {fault.path}:{fault.line}  {word}",
                flush=True,
            )
            if out:
                out.write_text(json.dumps([results[k] for k in sorted(results)], indent=1, ensure_ascii=False) + "\n")

    with tempfile.TemporaryDirectory(prefix="planted-faults-") as temporary:
        copies = [copy_tree(Path(temporary) / str(i)) for i in range(processes)]
        threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(report([results[k] for k in sorted(results)], suites, time.monotonic() - begun))


def report(results: list[dict], suites: list[str], seconds: float) -> str:
    """Shares caught, and every fault that was not."""
    here = [result for result in results if "gone" not in result["caught"]]
    lines = [""]
    for i, _suite in enumerate(suites):
        caught = sum(any(result["caught"].get(name) for name in suites[: i + 1]) for result in here)
        name = " and ".join(suites[: i + 1])
        lines.append(f"{caught} of {len(here)} faults caught by {name} ({100 * caught / max(len(here), 1):.0f} %)")
    for kind in KINDS:
        some = [result for result in here if result["kind"] == kind]
        lines.append(f"  {kind:10} {sum(any(result['caught'].values()) for result in some)} of {len(some)}")
    for result in results:
        if "gone" in result["caught"]:
            lines.append(f"gone: {result['caught']['gone']}")
        elif not any(result["caught"].values()):
            change = f"{result['before']} -> {result['after']}"
            lines.append(f"not caught: {result['path']}:{result['line']} {result['where']}: {change}")
    lines.append(f"{seconds / 60:.0f} minutes")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("map", "run", "draw"))
    parser.add_argument("--folder", type=Path, default=ROOT / ".planted_faults", help="where the map is kept")
    parser.add_argument("--suites", nargs="+", choices=tuple(SUITES), default=list(SUITES))
    parser.add_argument("--fresh", type=int, help="draw this many new faults instead of those of the list")
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    chosen = parser.parse_args()
    if chosen.what == "map":
        for suite in chosen.suites:
            make_map(chosen.folder, suite)
        return
    known = [Fault(**fault) for fault in json.loads(LIST.read_text())] if LIST.exists() else []
    if chosen.what == "draw":
        drawn = draw(ROOT / "hbm_jax", chosen.number, chosen.seed)
        LIST.write_text(json.dumps([dataclasses.asdict(f) for f in drawn], indent=1, ensure_ascii=False) + "\n")
        return
    faults = draw(ROOT / "hbm_jax", chosen.fresh, chosen.seed, tuple(known)) if chosen.fresh else known
    run(faults, chosen.folder, chosen.suites, chosen.processes, chosen.out)


if __name__ == "__main__":
    main()
