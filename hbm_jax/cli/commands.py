"""Commands of the command line, and the parsing of their arguments."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hbm_jax.cli.arguments import Parser, model_parser
from hbm_jax.cli.exit_status import BAD_INPUT, USABLE, in_flags, status_of
from hbm_jax.configuration import read_toml
from hbm_jax.names import choose
from hbm_jax.registry.entry import imported

SWITCHES = ("--no-", "--overwrite", "--quiet", "--help", "--blind", "--best-fit", "--centering")  # without a value
FIRST = "hbm-jax fit normal --data eight-schools --out runs/schools"


class Command(NamedTuple):
    """A command: one-line summary, parser (None if it takes a model), and the function that runs it.

    Functions of other modules are ``module:name``, imported when they are called.
    """

    summary: str
    parser: Callable[[], Parser] | str | None
    run: Callable[[argparse.Namespace], int] | str


def _report_parser() -> Parser:
    """Return the parser of ``report``."""
    parser = Parser("hbm-jax report", "DIR", "Rewrite the figures and the report of a run folder.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="run folder")
    return parser


def _doctor_parser() -> Parser:
    """Return the parser of ``doctor``."""
    return Parser("hbm-jax doctor", "", "Show versions, devices and precision, and check for known problems.")


def _report(arguments) -> int:
    """Rewrite figures and report of a run folder."""
    from hbm_jax import runs

    fit = runs.load(arguments.folder)
    print(in_flags(str(fit.verdict)))
    print(f"report     {runs.write_report(fit, arguments.folder)}")
    return status_of(fit.verdict)


def _unblind_parser() -> Parser:
    """Return the parser of ``unblind``."""
    about = "Show the values of the blinded parameters of a run folder from now on, and rewrite its files."
    parser = Parser("hbm-jax unblind", "DIR [options]", about)
    parser.add_argument("folder", metavar="DIR", type=Path, help="run folder")
    parser.add_argument("--no-report", action="store_true", help="write posterior and summary only, no figures")
    return parser


def _unblind(arguments) -> int:
    """Unblind a run folder, print the results and return the exit status."""
    from hbm_jax import runs

    fit = runs.unblind(arguments.folder)
    print(f"{in_flags(str(fit.verdict))}\n\n{fit.table()}\n")
    if not arguments.no_report:
        print(f"report     {runs.write_report(fit, arguments.folder)}")
    return status_of(fit.verdict)


def _evidence_parser() -> Parser:
    """Return the parser of ``evidence``."""
    about = (
        "Compute the evidence of fits by bridge sampling. Several fits to the same data are compared, by their "
        "predictive densities (leave-one-out) too."
    )
    parser = Parser("hbm-jax evidence", "DIR [DIR ...]", about, "example:\n  hbm-jax evidence runs/lcdm runs/wcdm")
    parser.add_argument("folders", metavar="DIR", type=Path, nargs="+", help="run folder, or file of a posterior")
    return parser


def _evidence(arguments) -> int:
    """Print the evidence of each fit and, for several fits, their comparison."""
    from hbm_jax import inference, runs

    fits = {str(folder): runs.load(folder) for folder in arguments.folders}
    if len(fits) == 1:
        print(inference.evidence(next(iter(fits.values()))))
        return USABLE
    result = inference.compare(fits)
    for name, evidence in result.evidences.items():
        print(f"{name}: {evidence}")
    print(f"\n{result.table.to_string(float_format='{:.2f}'.format)}\n\n{result}")
    return USABLE


def _doctor(arguments) -> int:
    """Print the environment and known problems."""
    from hbm_jax.cli.doctor import examine

    lines, problems = examine()
    print("\n".join(lines))
    for problem in problems:
        print(f"problem: {problem}")
    return BAD_INPUT if problems else USABLE


COMMANDS = {
    "fit": Command("fit a model to data and write a run folder with a report", None, "hbm_jax.cli.fit:fit"),
    "resume": Command(
        "continue a run that was stopped, or draw more samples",
        "hbm_jax.cli.fit:resume_parser",
        "hbm_jax.cli.fit:resume",
    ),
    "simulate": Command(
        "simulate data with the design of an existing sample, or a population", None, "hbm_jax.cli.simulate:simulate"
    ),
    "calibrate": Command(
        "test a model by simulation-based calibration, with data simulated from its priors",
        None,
        "hbm_jax.cli.calibrate:calibrate",
    ),
    "evidence": Command("compute the evidence of fits; compare several", _evidence_parser, _evidence),
    "report": Command("rewrite the figures and the report of a run folder", _report_parser, _report),
    "unblind": Command("show the values of the blinded parameters of a run folder", _unblind_parser, _unblind),
    "absorption": Command(
        "transmission of host galaxy, Milky Way and the WHIM",
        "hbm_jax.cli.absorption:parser",
        "hbm_jax.cli.absorption:run",
    ),
    "bench": Command(
        "compare with NumPyro, BlackJAX, PyMC and Stan, where installed",
        "hbm_jax.cli.bench:parser",
        "hbm_jax.cli.bench:run",
    ),
    "doctor": Command("show versions, devices and precision, and check for known problems", _doctor_parser, _doctor),
}


def run(argv: Sequence[str] | None) -> int:
    """Parse the arguments, run the command and return the exit status."""
    command, arguments = parsed(sys.argv[1:] if argv is None else argv)
    from hbm_jax.inference.compilation.cache import use_compilation_cache
    from hbm_jax.inference.compilation.devices import use_every_core

    use_every_core()
    use_compilation_cache()
    return imported(COMMANDS[command].run)(arguments)


def parsed(argv: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Return the command and its arguments; ``--help`` prints a page and ends the process.

    Raises
    ------
    ConfigError
        For an unknown command or option, whose nearest is suggested.
    ValueError
        For an unknown model.
    """
    if not argv or argv[0].startswith("-"):
        main = _main_parser("--version" in argv)
        main.parse(argv)
        main.error(f"expected a command, one of {', '.join(COMMANDS)}, found none")
    command, rest = choose("command", argv[0], COMMANDS), list(argv[1:])
    if COMMANDS[command].parser is not None:
        return command, imported(COMMANDS[command].parser)().parse(rest)
    name, rest = model_name(rest)
    if name is None and {"-h", "--help"} & set(rest):
        models_page(command).parse(rest)
    from hbm_jax import registry

    entry = registry.named(name)  # raises an error for None
    arguments = model_parser(command, str(name), entry, rest).parse(rest)
    arguments.model = name
    return command, arguments


def _main_parser(show_version: bool) -> Parser:
    """Return the parser of the command line without a command."""
    width = max(map(len, COMMANDS))
    lines = [
        "Begin with",
        f"  {FIRST}",
        "  hbm-jax fit --help              the models",
        "  hbm-jax fit MODEL --help        the options of one of them, with examples",
        "",
        "commands:",
        *(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "The exit status is 0 for a usable posterior, 3 for one that is not, 4 for a usable one where the data do not "
        "look like the model, 2 for bad input, 130 if interrupted.",
    ]
    about = "Hierarchical Bayesian models for populations of astrophysical objects."
    parser = Parser("hbm-jax", "COMMAND [options]", about, "\n".join(lines))
    text = ""
    if show_version:
        from hbm_jax import __version__

        text = f"hbm_jax {__version__}"
    parser.add_argument("--version", action="version", version=text)
    return parser


def models_page(command: str) -> Parser:
    """Return the parser of a command without a model, whose help lists the models."""
    from hbm_jax.registry import MODELS

    summaries = MODELS.summaries()
    width = max(map(len, summaries))
    lines = ["models:", *(f"  {name:<{width}}  {text}".rstrip() for name, text in summaries.items()), ""]
    lines.append(f"'hbm-jax {command} MODEL --help' shows the options of a model, with examples.")
    lines += ["To see a fit:", f"  {FIRST}"] if command == "fit" else []
    about = COMMANDS[command].summary
    return Parser(f"hbm-jax {command}", "MODEL [options]", f"{about[:1].upper()}{about[1:]}.", "\n".join(lines))


def model_name(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the name of the model, from the arguments or the file of --config, and the other arguments."""
    if argv and not argv[0].startswith("-"):
        return argv[0], list(argv[1:])
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    finder.add_argument("--set", action="append", default=[])
    try:
        flags, _ = finder.parse_known_args(argv)
    except argparse.ArgumentError:  # raised again by the parser of the model
        flags = argparse.Namespace(config=None, set=[])
    from hbm_jax.registry import MODELS

    for index, word in enumerate(argv):
        previous = argv[index - 1]
        is_switch = previous.startswith(SWITCHES) or "=" in previous
        if word in MODELS and (is_switch or not previous.startswith("--")):
            return word, [*argv[:index], *argv[index + 1 :]]
    names = [text.partition("=")[2].strip() for text in flags.set if text.partition("=")[0].strip() == "model.name"]
    if flags.config and not names:
        section = read_toml(flags.config).get("model", {})
        names = [section.get("name")] if isinstance(section, dict) else []
    return (str(names[-1]) if names and names[-1] else None), list(argv)
