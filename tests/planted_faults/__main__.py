"""Plant faults in the package, one at a time, and see whether the tests notice.

    python tests/planted_faults               every fault of faults.json
    python tests/planted_faults --fresh 20    also 20 faults that are drawn anew
    python tests/planted_faults --draw        draw faults.json

First the suite runs once in a copy of the working tree, which records the tests that execute the code of each fault.
Then each fault is planted in a copy. The tests that execute it run until one fails, those named like its file first.
Tests of a file share what the first of them traced or sampled, so the other tests of these files run as well if none
has failed. The tests marked `long` run for faults that the default suite does not catch. A test that takes ten times as
long as without the fault counts as failed. `--map-only` ends after the first step; `--folder` keeps its records, and
uses those that it already contains.
"""

import argparse
import dataclasses
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import recorder
from rules import KINDS, Fault, draw, plant, probe

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LIST = HERE / "faults.json"
SUITES = {"default": (), "long": ("-m", "long")}
SIDE_BY_SIDE = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "--no-loadscope-reorder")
COPIED = ("hbm_jax", "tests", "notebooks", "docs", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md")
COPIED += ("CITATION.cff", "Makefile", "LICENSE", "CONTRIBUTING.md", "codemeta.json", ".zenodo.json", ".gitignore")
COPIED += (".ci", ".github", ".readthedocs.yaml")
IGNORED = shutil.ignore_patterns("__pycache__", "_build", ".ipynb_checkpoints")
# What a probe calls, written into the copy: one line a fault and test, by whichever process comes first.
PROBE = """
import os

_known = set()


def reached(fault):
    found = fault, os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    if found not in _known and os.environ.get("HBM_JAX_RECORD"):
        _known.add(found)
        with open(os.path.join(os.environ["HBM_JAX_RECORD"], f"{os.getpid()}.reached"), "a") as file:
            file.write(f"{found[0]} {found[1]}\\n")
"""
CALL = '__import__("planted_probe").reached({})'


@dataclasses.dataclass(frozen=True)
class Map:
    """Tests that reach each fault, their durations [s], and the tests that fail without a fault."""

    seconds: dict[str, float]
    failed: frozenset[str]
    reached: dict[int, frozenset[str]]

    @classmethod
    def make(cls, faults: list[Fault | None], folder: Path, suite: str) -> "Map":
        """Run a suite with probes at the faults, unless `folder` already contains its records."""
        record = folder / suite
        asked = json.dumps([fault and dataclasses.asdict(fault) for fault in faults])
        known = record / "faults.txt"
        if not (known.exists() and known.read_text() == asked):
            shutil.rmtree(record, ignore_errors=True)
            record.mkdir(parents=True)
            with tempfile.TemporaryDirectory(prefix="planted-faults-") as temporary:
                copy = copy_tree(Path(temporary))
                (copy / "planted_probe.py").write_text(PROBE)  # beside the package, whose rooms are tested
                probe(faults, copy, CALL)
                command = [sys.executable, "-m", "pytest", "-q", *SIDE_BY_SIDE, *SUITES[suite], "-p", "recorder"]
                environment = os.environ | {
                    "HBM_JAX_RECORD": str(record.resolve()),
                    "HBM_JAX_TEST_PROGRAMS": str((folder / "programs").resolve()),
                    "PYTHONPATH": f"{copy}{os.pathsep}{HERE}",
                }
                subprocess.run(command, cwd=copy, env=environment, check=False)
            known.write_text(asked)
        tests, _, _ = recorder.read(record)
        reached: dict[int, set[str]] = defaultdict(set)
        for path in record.glob("*.reached"):
            for line in path.read_text().splitlines():
                number, name = line.split(" ", 1)
                reached[int(number)].add(name)
        failed = frozenset(name for name, values in tests.items() if values.get("failed"))
        for name in sorted(failed):
            print(f"fails without a fault, and is left out: {name}")
        seconds = {name: values.get("seconds", 0.0) for name, values in tests.items() if name != "session"}
        return cls(seconds, failed, {number: frozenset(names) for number, names in reached.items()})

    def of(self, fault: int, path: str) -> list[list[str]]:
        """Return the tests that reach a fault, those named like its file first, and the other tests of their files."""
        folder, stem = Path(path).parent.name, Path(path).stem

        def place(name: str) -> tuple[bool, bool, float]:
            test = Path(name.partition("::")[0])
            return stem not in test.stem, folder != test.parent.name, self.seconds[name]

        found = self.reached.get(fault, frozenset())
        if "" in found:  # reached during an import, which is not part of a test
            found |= {name for name in self.seconds if Path(name.partition("::")[0]).parent.name == folder}
        found = (found & self.seconds.keys()) - self.failed
        files = {name.partition("::")[0] for name in found}
        others = {name for name in self.seconds if name.partition("::")[0] in files} - found - self.failed
        return [sorted(some, key=place) for some in (found, others)]


def first_failure(copy: Path, tests: list[str], limit: float, programs: str) -> str | None:
    """Run tests in a copy of the tree until one fails; return its name, or None."""
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


def try_fault(number: int, fault: Fault, copy: Path, known: Map, programs: str) -> str | None:
    """Return the test of a suite that catches the fault, or None where none does."""
    source = (copy / fault.path).read_bytes()
    plant(fault, copy)
    try:
        for tests in known.of(number, fault.path):
            caught = first_failure(copy, tests, 60 + 10 * sum(known.seconds[name] for name in tests), programs)
            if caught:
                return caught
        return None
    finally:
        (copy / fault.path).write_bytes(source)


def copy_tree(to: Path) -> Path:
    """Copy the files that the tests need to a folder, and return it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=IGNORED)
        elif source.exists():
            shutil.copy2(source, to / name)
    return to


def run(faults: list[Fault], known: Map, suite: str, processes: int, programs: str) -> dict[int, str | None]:
    """Try faults in parallel and print each result; return the failing test of each fault, or None."""
    waiting: queue.Queue[tuple[int, Fault]] = queue.Queue()
    for number, fault in enumerate(faults):
        if fault is not None:
            waiting.put((number, fault))
    total, caught = waiting.qsize(), {}

    def work(copy: Path) -> None:
        while True:
            try:
                number, fault = waiting.get_nowait()
            except queue.Empty:
                return
            start = time.monotonic()
            caught[number] = try_fault(number, fault, copy, known, programs)
            print(
                f"{suite} {len(caught):3}/{total} {time.monotonic() - start:6.1f} s  {fault.kind:10} "
                f"{fault.path}:{fault.line}  {caught[number] or 'NOT CAUGHT'}",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="planted-faults-") as temporary:
        copies = [copy_tree(Path(temporary) / str(i)) for i in range(processes)]
        threads = [threading.Thread(target=work, args=(copy,)) for copy in copies]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return caught


def still_here(faults: list[Fault]) -> list[Fault | None]:
    """Return the faults, with None for one whose text is no longer in the sources."""
    here: list[Fault | None] = []
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as temporary:
        copy = copy_tree(Path(temporary))
        for fault in faults:
            source = (copy / fault.path).read_bytes() if (copy / fault.path).exists() else b""
            try:
                plant(fault, copy)
                here.append(fault)
                (copy / fault.path).write_bytes(source)
            except LookupError as error:
                print(f"gone: {error}")
                here.append(None)
    return here


def report(title: str, results: list[dict], suites: list[str]) -> str:
    """Return the fractions of faults that are caught, and every fault that is not."""
    lines = ["", title]
    for i, _suite in enumerate(suites):
        caught = sum(any(result["caught"].get(name) for name in suites[: i + 1]) for result in results)
        name = " and ".join(suites[: i + 1])
        lines.append(f"{caught} of {len(results)} caught by {name} ({100 * caught / max(len(results), 1):.0f} %)")
    for kind in KINDS:
        some = [result for result in results if result["kind"] == kind]
        lines.append(f"  {kind:10} {sum(any(result['caught'].values()) for result in some)} of {len(some)}")
    for result in results:
        if not any(result["caught"].values()):
            change = f"{result['before']} -> {result['after']}"
            lines.append(f"not caught: {result['path']}:{result['line']} {result['where']}: {change}")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".planted_faults", help="where the maps are kept")
    parser.add_argument("--suites", nargs="+", choices=tuple(SUITES), default=list(SUITES))
    parser.add_argument("--fresh", type=int, default=0, help="draw this many new faults besides those of the list")
    parser.add_argument("--seed", type=int, default=2026, help="of what is drawn")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    parser.add_argument("--map-only", action="store_true")
    parser.add_argument("--draw", action="store_true")
    chosen = parser.parse_args()
    if chosen.draw:
        drawn = draw(ROOT / "hbm_jax", 60, chosen.seed)
        LIST.write_text(json.dumps([dataclasses.asdict(f) for f in drawn], indent=1, ensure_ascii=False) + "\n")
        return
    os.environ.setdefault("HBM_JAX_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    begun = time.monotonic()
    listed = [Fault(**fault) for fault in json.loads(LIST.read_text())]
    fresh = draw(ROOT / "hbm_jax", chosen.fresh, chosen.seed, tuple(listed)) if chosen.fresh else []
    faults = still_here(listed + fresh)
    results = {i: {**dataclasses.asdict(f), "caught": {}} for i, f in enumerate(faults) if f is not None}
    left = list(faults)
    for suite in chosen.suites:
        known = Map.make(left, chosen.folder, suite)
        if chosen.map_only:
            continue
        for number, test in run(left, known, suite, chosen.processes, str(chosen.folder / "programs")).items():
            results[number]["caught"][suite] = test
            left[number] = None if test else left[number]
        if chosen.out:
            chosen.out.write_text(json.dumps(list(results.values()), indent=1, ensure_ascii=False) + "\n")
    if not chosen.map_only:
        groups = (("the list", range(len(listed))), ("fresh ones", range(len(listed), len(faults))))
        for title, numbers in groups:
            print(report(title, [results[i] for i in numbers if i in results], chosen.suites))
        print(f"{(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
