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
import math
import os
import pickle
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
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
    "fixed length": {"trajectory_length": 1.5},
    "independent": {"independent_proposals": True, "trajectory_length": 1.5},
}
AT_ONCE = "; two contestants at a time, so that speeds are rough"
QUICK_SECONDS = 420.0  # beside the environment and the kernels
LEAST_SECONDS = 15.0  # in which a contestant may end
FIRST = "; of the forms of the others the better one only, by short runs of all (suite_forms.txt)"


def contestants(system, forms="all", quick=False) -> list[str]:
    """Names of the contestants of a system, the reference first; with "first" only the better form, named first."""
    if forms == "first":
        ways = () if quick else WAYS
        return [OURS, *(f"{OURS}, {way}" for way in ways), *(f"{engine}, {system.FORMS[0]}" for engine in ENGINES)]
    ours = [OURS, *(f"{OURS}, {name}" for name in (*WAYS, *list(system.OURS)[1:]))]
    return ours + [f"{engine}, {form}" for engine in ENGINES for form in system.FORMS]


def sizes(system, quick) -> dict[str, int]:
    """How large the problem is."""
    return system.QUICK_SIZES if quick else system.SIZES


def files_of(problem: Path) -> tuple[Path, Path]:
    """Files of a problem: arrays for everybody, and our container."""
    return problem.with_suffix(".arrays"), problem.with_suffix(".data")


def prepare(system: str, options, problem: Path) -> None:
    """Work out the problem of a system, once for all contestants."""
    command = [sys.executable, str(HERE), "--system", system, "--contestant", PROBLEM, "--problem", str(problem)]
    subprocess.run(command + (["--quick"] if options.quick else []), check=True)


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
        if options.build:
            engines.build_stan(program, system.stan_data(given, form), options.seed)
            return
        result = engines.stan(program, system.stan_data(given, form), starts, system.NAMES, options)
    result.memory = memory_of_session()
    options.result.write_bytes(pickle.dumps(result))


def build_ahead(names, folder: Path) -> None:
    """Compile the Stan programs of some systems, two at a time: half a minute each where they are not kept yet."""
    if package := missing("Stan"):
        print(f"Stan: {package} is not installed")
        return
    alike = [sys.executable, str(HERE), "--build", "--seed", "1"]
    commands = [
        [*alike, "--system", name, "--problem", str(folder / name), "--contestant", f"Stan, {form}"]
        for name in names
        for form in import_module(f"systems.{name}").FORMS[:1]
    ]
    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda command: subprocess.run(command, capture_output=True, check=False).returncode, commands)
    failed = [name for name, code in zip(names, done, strict=True) if code]
    print(f"Stan's programs are compiled, {time.perf_counter() - began:.0f} s", flush=True)
    if failed:
        print(f"but not those of {', '.join(failed)}: see below", flush=True)


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


def run(system: str, contestant: str, seed: int, options, folder: Path):
    """Run one contestant in a process of its own; returns its row."""
    from result import Row

    if package := missing(contestant):
        return Row(system, contestant, seed, failure=f"not run: {package} is not installed")
    seconds = min(options.seconds, options.end - time.monotonic())
    if seconds < LEAST_SECONDS:
        return Row(system, contestant, seed, failure=f"not run: the {QUICK_SECONDS / 60:.0f} minutes were up")
    own = folder / contestant.replace(" ", "_")
    own.mkdir(exist_ok=True)
    file = own / "result.pickle"
    file.unlink(missing_ok=True)
    command = [
        sys.executable, str(HERE), "--system", system, "--contestant", contestant, "--seed", str(seed), "--draws",
        str(options.draws), "--longer", str(options.longer), "--result", str(file), "--problem", str(folder / system),
    ]  # fmt: skip
    command += ["--fresh"] if options.fresh else []
    command += ["--quick"] if options.quick else []
    with (own / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        began = time.perf_counter()
        while process.poll() is None and not file.exists() and time.perf_counter() - began < seconds:
            time.sleep(0.1)
        done = file.exists()
        if done:
            time.sleep(0.3)
        if process.poll() is None:  # PyStan's workers keep a process that is done from ending
            os.killpg(process.pid, 9)
        process.wait()
        log.seek(0)
        said = [line for line in log.read().splitlines() if line.strip()]
    if done:
        return Row.of(system, contestant, seed, pickle.loads(file.read_bytes()))
    if process.returncode == -9:
        return Row(system, contestant, seed, failure=f"not finished after {seconds:.0f} s")
    errors = [line for line in said if re.match(r"[\w.]*(Error|Exception)\b", line)] or said
    return Row(system, contestant, seed, failure=f"failed: {errors[-1] if errors else process.returncode}")


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
    parser.add_argument("--quick", action="store_true", help="one round of 300 draws in 7 minutes: whether it all runs")
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
    options.longer, options.at_once, options.end = 4, 1, math.inf
    if options.quick:
        options.rounds, options.draws, options.seconds, options.forms = 1, 300, min(options.seconds, 45.0), "first"
        # Most of the time goes into compilation, which takes one core.
        options.at_once, options.end = 2, time.monotonic() + QUICK_SECONDS
    names = options.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--systems: expected some of {', '.join(SYSTEMS)}; found {', '.join(unknown)}")
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
    with tempfile.TemporaryDirectory() as folder:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda name: prepare(name, options, Path(folder) / name), names))
        if options.quick and any("Stan".startswith(w) for w in wanted):
            build_ahead(names, Path(folder))
        for name in names:
            system = import_module(f"systems.{name}")
            known = contestants(system, options.forms, options.quick)
            taking_part = [c for c in known if any(c.startswith(w) for w in wanted)]
            rows = []
            for seed in range(1, options.rounds + 1):
                turn = taking_part if seed == 1 else better_forms(rows, taking_part)
                own = allowances(options, system)
                with ThreadPoolExecutor(options.at_once) as pool:
                    for row in pool.map(lambda one: run(name, one, seed, own, Path(folder)), turn):  # noqa: B023
                        rows.append(row)
                        print(report.one_line(row), flush=True)
            # A system that is done is on disk, beside those of earlier runs.
            settings = about["settings"].replace(f"{options.draws} ", f"{own.draws} ")
            settings = settings.replace(f"{options.seconds:.0f} s", f"{own.seconds:.0f} s")
            title = system.TITLE.format(**sizes(system, options.quick))
            report.keep(name, title, rows, about | {"settings": settings}, options.out)
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
