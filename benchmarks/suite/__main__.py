"""Five systems, every contestant side by side in alternation: a table, figures, and their numbers.

Systems: the linear relation, supernovae, Golenetskii, a population of afterglows, the normal hierarchy. Contestants:
hbm_jax as it comes, with trajectories of a fixed length, with independent proposals, and with sampled latents; plain
NumPyro, BlackJAX, PyMC with nutpie, and real Stan (PyStan 3), each written as its own experts would, vectorised and
with everything constant computed beforehand, centred and non-centred. Every one runs in a process of its own, two
chains on two cores, double precision. In each round all contestants of a system take their turn before the next round
begins. From the second round on only the better form of each is run. Posteriors are compared with those of hbm_jax
before speeds are; one that does not converge, fails or runs out of time is shown as such. Compared is the slowest
parameter of the population.
"""

import argparse
import datetime
import itertools
import math
import os
import pickle
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
PROGRAMS = HERE.parent / "stan"
SYSTEMS = ("relation", "supernovae", "golenetskii", "normal", "afterglows")  # what takes longest at the end
ENGINES = {"NumPyro": "numpyro", "BlackJAX": "blackjax", "PyMC": "pymc", "Stan": "pystan"}  # and their packages
PACKAGES = ("hbm_jax", "jax", "numpyro", "blackjax", "pymc", "nutpie", "pystan", "numpy")
OURS = "hbm_jax"
PROBLEM = "the problem"  # which is worked out in a process of its own, as a contestant is run
WAYS = {  # of drawing, beside the default
    "fixed length": {"sampler": ("HMC", {"trajectory_length": 1.5})},
    "independent": {"sampler": ("IndependentProposals", {"trajectory_length": 1.5})},
}
AT_ONCE = "; two contestants at a time, compiled with few optimisations by XLA: speeds are rough"
FEW_OPTIMISATIONS = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
QUICK_SECONDS = 480.0  # beside the environment and the kernels
LEAST_SECONDS = 15.0  # in which a contestant may end
STOPPED = threading.Event()  # set by Ctrl-C: running processes are ended, those in the queue not begun
FIRST = "; of the forms of the others the better one only, by short runs of all (suite_forms.txt)"


def contestants(system, forms="all", quick=False) -> list[str]:
    """Names of the contestants of a system, the reference first; with "first" only the better form, named first."""
    if forms == "first":
        ways = () if quick else WAYS
        return [OURS, *(f"{OURS}, {way}" for way in ways), *(f"{engine}, {system.FORMS[0]}" for engine in ENGINES)]
    ours = [OURS, *(f"{OURS}, {name}" for name in (*WAYS, *list(system.OURS)[1:]))]
    return ours + [f"{engine}, {form}" for engine in ENGINES for form in system.FORMS]


def sizes(system, quick) -> dict[str, int]:
    """Return the sizes of a problem."""
    return system.QUICK_SIZES if quick else system.SIZES


def files_of(problem: Path) -> tuple[Path, Path]:
    """Files of a problem: arrays for everybody, and our container."""
    return problem.with_suffix(".arrays"), problem.with_suffix(".data")


def prepare(system: str, options, folder: Path) -> str:
    """Compute the problem of a system, once for all contestants, and in a quick run compile its Stan program.

    Returns why the problem could not be worked out. Of Stan, its contestant tells what there is to tell.
    """
    alike = [sys.executable, str(HERE), "--system", system, "--problem", str(folder / system)]
    alike += ["--quick"] if options.quick else []
    status, said = run_within([*alike, "--contestant", PROBLEM], math.inf, folder / f"{system}.log")
    if status:
        return f"the problem could not be worked out: {error_in(said, status)}"
    if options.build_ahead:
        form = import_module(f"systems.{system}").FORMS[0]
        build = [*alike, "--contestant", f"Stan, {form}", "--build", "--seed", "1"]
        run_within(build, options.end - time.monotonic(), folder / f"{system}.log")
    return ""


def run_within(command, seconds, log: Path, result: Path | None = None) -> tuple[int | None, list[str]]:
    """Run a command until it ends, has left its result, or its time is up; returns its status and what it said."""
    end = time.monotonic() + seconds
    with log.open("w+") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        while process.poll() is None and time.monotonic() < end and not STOPPED.is_set():
            if result is not None and result.exists():
                time.sleep(0.3)  # in which it would end by itself, but for PyStan's workers
                break
            time.sleep(0.1)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        file.seek(0)
        return process.returncode, [line for line in file.read().splitlines() if line.strip()]


def few_optimisations() -> str:
    """XLA_FLAGS with those for less optimisation that this version of jaxlib knows: others would end a process."""
    known = os.environ.get("XLA_FLAGS", "")
    for flag in FEW_OPTIMISATIONS.split():
        asked, flags = [sys.executable, "-c", "import jax; jax.devices()"], f"{known} {flag}".strip()
        if not subprocess.run(asked, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True).returncode:
            known = flags
    return known


def error_in(said, status) -> str:
    """Find the error in what a process said, or its last word."""
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)] or said
    return errors[-1] if errors else f"exit status {status}"


def missing(contestant) -> str:
    """Package without which a contestant cannot run, if it is not installed."""
    package = ENGINES.get(contestant.split(",")[0], "hbm_jax")
    try:
        version(package)
    except PackageNotFoundError:
        return package
    return ""


def run_one(options) -> None:
    """Run one contestant in this process and leave its result in a file."""
    import engines
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", engines.CHAINS)  # before anything else asks for a device
    system = import_module(f"systems.{options.system}")
    if options.contestant == PROBLEM:
        given = system.problem(**sizes(system, options.quick))
        data = given.pop("data", None)  # ours, which no other contestant has to import us for
        for file, content in zip(files_of(options.problem), (given, data), strict=True):
            file.write_bytes(pickle.dumps(content))
        return
    arrays, data = files_of(options.problem)
    given = pickle.loads(arrays.read_bytes())
    engine, _, form = options.contestant.partition(", ")
    if engine == OURS:
        given["data"] = pickle.loads(data.read_bytes())
        latents = system.OURS.get(form, next(iter(system.OURS.values())))
        ours = system.ours(given, latents)
        result = engines.ours(*ours, system.NAMES, options, system.SHIFTS, **WAYS.get(form, {}))
    elif engine in ("NumPyro", "BlackJAX"):
        run = engines.numpyro if engine == "NumPyro" else engines.blackjax
        result = run(system.numpyro_program(given, form), system.NAMES, options)
    elif engine == "PyMC":
        result = engines.pymc(system.pymc_model(given, form), system.NAMES, options)
    else:
        rng = np.random.default_rng(options.seed)
        starts = [system.stan_start(given, form, rng) for _ in range(engines.CHAINS)]
        program = PROGRAMS / system.PROGRAM[form]
        ahead = options.problem.with_suffix(".seconds")
        if options.build:
            began = time.monotonic()
            engines.build_stan(program, system.stan_data(given, form), options.seed)
            ahead.write_text(f"{time.monotonic() - began}")
            return
        result = engines.stan(program, system.stan_data(given, form), starts, system.NAMES, options)
        result.seconds["compile"] += float(ahead.read_text()) if ahead.exists() else 0.0
    result.memory = memory_of_session()
    options.result.write_bytes(pickle.dumps(result))


def memory_of_session() -> float:
    """Return the largest memory of each process of this session, added up [bytes]: Stan has workers of its own."""
    total = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getsid(int(status.parent.name)) == os.getsid(0):
                total += 1024.0 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
        except (OSError, TypeError):  # ended, or a zombie
            continue
    return total


def run(system: str, contestant: str, seed: int, options, folder: Path, problem):
    """Run one contestant in a process of its own, once the problem is worked out; returns its row."""
    from result import Row

    if package := missing(contestant):
        return Row(system, contestant, seed, failure=f"not run: {package} is not installed")
    if failure := problem.result():
        return Row(system, contestant, seed, failure=failure)
    seconds = min(options.seconds, options.end - time.monotonic())
    if seconds < LEAST_SECONDS:
        return Row(system, contestant, seed, failure=f"not run: the {QUICK_SECONDS / 60:.0f} minutes were up")
    own = folder / f"{system}, {contestant}".replace(" ", "_")
    own.mkdir(exist_ok=True)
    file = own / "result.pickle"
    file.unlink(missing_ok=True)
    command = [
        sys.executable, str(HERE), "--system", system, "--contestant", contestant, "--seed", str(seed), "--draws",
        str(options.draws), "--longer", str(options.longer), "--result", str(file), "--problem", str(folder / system),
    ]  # fmt: skip
    command += ["--fresh"] if options.fresh else []
    command += ["--quick"] if options.quick else []
    status, said = run_within(command, seconds, own / "log", file)
    if file.exists():
        return Row.of(system, contestant, seed, pickle.loads(file.read_bytes()))
    if status == -signal.SIGKILL:
        return Row(system, contestant, seed, failure=f"not finished after {seconds:.0f} s")
    return Row(system, contestant, seed, failure=f"failed: {error_in(said, status)}")


def allowances(options, system):
    """Draws and seconds, by what a system costs."""
    own = argparse.Namespace(**vars(options))
    own.draws = int(options.draws * system.SHARE)
    own.seconds = options.seconds * (min(system.PATIENCE, 2) if options.quick else system.PATIENCE)
    return own


def better_forms(rows, names) -> list[str]:
    """Return our contestants, and the better form of each of the others."""
    kept = [name for name in names if name.startswith(OURS)]
    for engine in ENGINES:
        of_engine = [r for r in rows if r.contestant.startswith(f"{engine},") and not r.failure]
        # One that has not converged has no speed; where none has, the one nearer to it goes on.
        of_engine.sort(key=lambda r: (r.converged, r.rate if r.converged else -r.r_hat))
        kept += [of_engine[-1].contestant] if of_engine else []
    return kept


def main():
    """Run what was asked for."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of 300 draws in 8 minutes: whether it all runs")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"comma-separated: {', '.join(SYSTEMS)}")
    parser.add_argument("--only", help="contestants whose names begin with one of these, comma-separated")
    parser.add_argument("--forms", choices=("all", "first"), default="all", help="first: no form known to be the worse")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1000, help="warm-up and kept draws of each chain of the others")
    parser.add_argument("--seconds", type=float, default=300.0, help="granted to each contestant, compiling included")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for the table, numbers and figures"
    )
    parser.add_argument("--render", type=Path, metavar="FILE", help="write table and figure again from a suite.json")
    parser.add_argument("--no-kernels", action="store_true", help="leave out the comparison of kernels")
    for name, kind in (("system", str), ("contestant", str), ("seed", int), ("longer", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    for name in ("result", "problem"):
        parser.add_argument(f"--{name}", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--fresh", action="store_true", help="compile Stan's programs again where they are cached")
    options = parser.parse_args()
    if options.contestant:
        run_one(options)
        return
    if options.render:
        import_module("report").render(options.render)
        return
    options.longer, options.at_once, options.end, flags = 4, 1, math.inf, os.environ.get("XLA_FLAGS", "")
    if options.quick:
        options.rounds, options.draws, options.seconds, options.forms = 1, 300, min(options.seconds, 60.0), "first"
        # Most of the time goes into compilation, which takes one core.
        options.longer, options.at_once, options.end = 2, 2, time.monotonic() + QUICK_SECONDS
        os.environ["XLA_FLAGS"] = few_optimisations()
    names = options.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--systems: expected names among {', '.join(SYSTEMS)}; found {', '.join(unknown)}")
    wanted = options.only.split(",") if options.only else [""]
    import report
    import result

    result.MIN_ESS = 30 if options.quick else result.MIN_ESS
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "device": "CPU, double precision, two chains",
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES if not _absent(p)},
        "settings": f"{options.draws} warm-up and {options.draws} kept draws of each chain ({options.longer} times as "
        f"many kept of hbm_jax), at most {options.seconds:.0f} s each"
        + (FIRST if options.forms == "first" else "")
        + (AT_ONCE if options.quick else ""),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    known = {name: contestants(import_module(f"systems.{name}"), options.forms, options.quick) for name in names}
    taking_part = {name: [c for c in known[name] if any(c.startswith(w) for w in wanted)] for name in names}
    options.build_ahead = options.quick and not missing("Stan") and any(c[:4] == "Stan" for c in taking_part[names[0]])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.at_once) as pool:
        jobs: dict[tuple, Future] = {}

        def row_of(name, contestant, seed):
            """Future row of a contestant; asked for the first time, it is put at the end of the queue."""
            own = allowances(options, import_module(f"systems.{name}"))
            key, task = (name, contestant, seed), (run, name, contestant, seed, own, Path(folder), problem_of(name))
            if key not in jobs:
                jobs[key] = pool.submit(*task)
                jobs[key].add_done_callback(tell)
            return jobs[key]

        def problem_of(name):
            return jobs.get((name,)) or jobs.setdefault((name,), pool.submit(prepare, name, options, Path(folder)))

        def tell(job):
            if not job.cancelled() and not job.exception():
                print(report.one_line(job.result()), flush=True)

        try:
            if options.quick:  # both cores are busy until the end: what takes longest first, Stan's short runs last
                for name in reversed(names):
                    problem_of(name)
                for turn in itertools.zip_longest(*(taking_part[name] for name in reversed(names))):
                    for name, contestant in zip(reversed(names), turn, strict=True):
                        if contestant is not None:
                            row_of(name, contestant, 1)
            for name in names:
                rows: list = []
                for seed in range(1, options.rounds + 1):
                    turn = taking_part[name] if seed == 1 else better_forms(rows, taking_part[name])
                    for contestant in turn:
                        rows.append(row_of(name, contestant, seed).result())
                # A system that is done is on disk, beside those of earlier runs.
                system = import_module(f"systems.{name}")
                own = allowances(options, system)
                settings = about["settings"].replace(f"{options.draws} ", f"{own.draws} ")
                settings = settings.replace(f"{options.seconds:.0f} s", f"{own.seconds:.0f} s")
                title = system.TITLE.format(**sizes(system, options.quick))
                report.keep(name, title, rows, about | {"settings": settings}, options.out)
        except BaseException as stopped:
            STOPPED.set()
            pool.shutdown(cancel_futures=True)
            if isinstance(stopped, KeyboardInterrupt):
                parser.exit(130, f"interrupted; systems that were done are in {options.out}\n")
            raise
    os.environ["XLA_FLAGS"] = flags
    if not options.no_kernels:
        report.keep_kernels(import_module("kernels").table(quick=options.quick), options.out)
    print((options.out / "suite.txt").read_text())
    print(f"written to {options.out}: suite.txt, suite.md, suite.json, suite.png")


def _absent(package):
    try:
        version(package)
    except PackageNotFoundError:
        return True
    return False


if __name__ == "__main__":
    main()
