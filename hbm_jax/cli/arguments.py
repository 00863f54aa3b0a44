"""Parsers of the command line: one for each command and, for commands that take a model, one for each model.

The value of a flag is stored under its key in the configuration, such as ``model.cosmology``, as text, which the
configuration converts and checks.
"""

import argparse
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hbm_jax.configuration import OPEN, ConfigError, defaults, merged, read_toml, sample_options, set_key
from hbm_jax.names import nearest
from hbm_jax.registry.entry import HELP

CALIBRATION_OPTIONS = ("seed", "num_chains", "num_warmup", "max_num_samples", "target_accept_prob", "dtype")
END_OPTIONS = ("num_samples", "until", "max_num_samples", "max_seconds")  # options that resume may change
REPLACED = "independent_proposals"  # option of older configurations, for which there is --sampler
TABLES = {  # sections of the configuration with one flag for all their entries
    "columns": ("column", "KEY=NAME", "name in the table of a standard column; may be repeated"),
    "prior": ("prior", "NAME=PRIOR", "prior of a parameter, or the number at which it is fixed; may be repeated"),
    "truth": ("truth", "NAME=VALUE", "true value of a parameter; may be repeated"),
    "population": ("population", "NAME=VALUE", "property of the population; may be repeated"),
}
SAMPLE_HELP = {
    "seed": "seed of the random numbers",
    "num_chains": "number of chains",
    "num_warmup": "warm-up draws per chain; by default as many as are needed",
    "num_samples": "draws per chain; by default sampling continues until the posterior is usable",
    "until": "effective sample size of every parameter to reach; for one: --set sample.until.NAME=N",
    "max_num_samples": "largest number of draws per chain",
    "max_seconds": "time budget of this command, and of each resume",
    "target_accept_prob": "acceptance probability to aim at",
    "sampler": "sampler; by default hmc where the posterior is close to normal, else nuts; walnuts for funnels, "
    "chees for 64 chains or more",
    "max_tree_depth": "largest depth of the trees of nuts",
    "trajectory_length": "length of the trajectories of hmc",
    "max_energy_error": "largest variation of the energy along a step of walnuts, above which it is divided",
    "max_halvings": "largest number of times that walnuts halves a step, 0 to 20",
    "num_superchains": "groups of chains of chees with a common start, at least 16",
    "centering": "whether a pilot run chooses the partial non-centring; by default where the model gains by it",
    "dtype": "float64 or float32",
    "blind": "hide the values of the parameters that the model names, such as cosmological ones, until unblind",
}


class Formatter(argparse.HelpFormatter):
    """Formatter that wraps paragraphs and keeps lines that begin with a blank."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _fill_text(self, text, width, indent):
        """Wrap the lines of a text that do not begin with a blank."""

        def fill(line):
            if line[:1] in ("", " "):
                return indent + line
            return textwrap.fill(line, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)

        return "\n".join(map(fill, text.splitlines()))


class Parser(argparse.ArgumentParser):
    """Parser whose errors are `ConfigError` and suggest the nearest option."""

    def __init__(self, prog: str, usage: str, description: str = "", epilog: str = ""):
        texts = (f"{prog} {usage}", description, epilog)
        # An abbreviation of an option that this parser lacks would match another option.
        super().__init__(prog, *texts, formatter_class=Formatter, allow_abbrev=False)

    def error(self, message: str) -> typing.NoReturn:
        """Raise `ConfigError`."""
        where = self.prog.partition(" ")[2]
        prefix = f"{where}: " if where else ""
        raise ConfigError(f"{prefix}{message}. See {self.prog} --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed arguments.

        Raises
        ------
        ConfigError
            For an unknown option, whose nearest is suggested, and an option without a value.
        """
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].partition("=")[0]
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            suggestions = [flag for flag in known if flag.startswith(name)] or [
                f"--{flag}" for flag in [nearest(name.lstrip("-"), (flag[2:] for flag in known))] if flag
            ]
            hint = f" (did you mean {' or '.join(suggestions)}?)" if suggestions else ""
            if not name.startswith("-"):
                files = ". Name further spectra by --also" if "--also" in known else ""
                self.error(f"expected options only, found {name!r}; a list is written '[0.5, 7]'{files}")
            self.error(f"unknown option {name}{hint}")
        return arguments

    def add(self, group: argparse._ArgumentGroup, name: str, *aliases: str, **options: Any) -> None:
        """Add the flag of an option to a group, unless another option has a flag of this name."""
        flag = f"--{name.replace('_', '-')}"
        if not {flag, f"--no-{flag[2:]}"} & self._option_string_actions.keys():
            group.add_argument(flag, *aliases, **options)

    def add_option(self, group: argparse._ArgumentGroup, key: str, kind: Any, text: str, default: Any = None) -> None:
        """Add the flag of an option, ``SECTION.NAME``, of a type."""
        name = key.partition(".")[2]
        text += _default_text(default)
        text = text.replace("%", "%%")
        parts = [part for part in _alternatives(kind) if part is not types.NoneType]
        if parts == [bool]:
            self.add(group, name, dest=key, action=argparse.BooleanOptionalAction, help=text)
            return
        lists = [part for part in parts if _is_list(part)]
        self.add(
            group,
            name,
            # The ending marks an option that takes only lists; see `flags`.
            dest=f"{key}[]" if lists == parts else key,
            action="append" if lists else "store",
            metavar=_metavar(parts, lists, name),
            help=text,
        )

    def add_table(self, group: argparse._ArgumentGroup, section: str) -> None:
        """Add the flag that sets the entries of a section."""
        name, metavar, text = TABLES[section]
        self.add(group, name, dest=f"table.{section}", metavar=metavar, action="append", default=[], help=text)

    def add_sampling(
        self, names: Iterable[str], title: str = "sampling", defaults: Mapping[str, Any] | None = None
    ) -> None:
        """Add the flags of options of the section ``[sample]``; ``defaults`` replaces their defaults."""
        group, options = self.add_argument_group(title), sample_options()
        for name in names:
            kind, default = options[name].kind, (defaults or {}).get(name, options[name].default)
            self.add_option(group, f"sample.{name}", kind, SAMPLE_HELP.get(name, ""), default)

    def add_set(self, text: str) -> argparse._ArgumentGroup:
        """Add ``--set``."""
        group = self.add_argument_group("configuration")
        self.add(group, "set", metavar="KEY=VALUE", action="append", default=[], help=f"{text}; may be repeated")
        return group

    def add_output(self, command: str, out: str, help_text: str) -> None:
        """Add the flags of a command for its output; ``out`` is the placeholder of --out, ``help_text`` its help."""
        group = self.add_argument_group("output")
        if out:
            self.add(group, "out", metavar=out, help=help_text)
            self.add(group, "overwrite", action="store_true", help="replace existing files")
        if command != "simulate":
            self.add(group, "quiet", action="store_true", help="do not show progress")
        if command in ("fit", "resume"):
            text = "write posterior and summary only, no figures"
            self.add(group, "no-report", action="store_true", help=text)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _default_text(value: Any) -> str:
    """Return the default of an option for its help; empty if there is none to show."""
    if value in (None, "", (), [], dataclasses.MISSING, inspect.Parameter.empty):
        return ""
    shown: Any = list(value) if isinstance(value, tuple) else value
    return f" (default: {('no', 'yes')[value] if isinstance(value, bool) else shown})"


def _metavar(parts: Sequence[Any], lists: Sequence[Any], name: str) -> str:
    """Return the placeholder of a value, or of an entry of a list."""
    single = [part for part in parts if part not in lists] or [typing.get_args(part)[0] for part in lists]
    kinds = [typing.get_origin(part) or part for part in single]
    number = "NUMBER" if float in kinds else "N" if int in kinds else ""
    choices = [str(value) for part in single if typing.get_origin(part) is typing.Literal for value in part.__args__]
    if choices:
        others = [number] if number else ["LIST"] if tuple in kinds else []
        return "|".join([f"{{{','.join(choices)}}}", *others])
    if str in kinds:
        return "NAME" if lists else name.upper()
    if number:
        return number
    if any(dataclasses.is_dataclass(kind) or kind in (Mapping, dict) for kind in kinds):
        return "TABLE"
    return "LIST" if kinds == [tuple] else name.upper()


def _is_list(kind: Any) -> bool:
    """Return whether a type is a list of any length."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return args[-1:] == (...,)
    return isinstance(origin, type) and issubclass(origin, Sequence)


def model_parser(command: str, name: str, entry, argv: Sequence[str] = ()) -> Parser:
    """Return the parser of ``fit``, ``simulate`` or ``calibrate`` for one model.

    Parameters
    ----------
    command : str
        The command.
    name : str
        Name of the model.
    entry : hbm_jax.registry.Entry
        The model.
    argv : sequence of str
        The arguments; if they ask for help, it lists the parameters of the model that they describe.
    """
    parser = Parser(f"hbm-jax {command} {name}", "[options]", _sentence(entry.summary), _examples(command, name, entry))
    draws = command == "simulate" and (entry.simulate is not None or entry.design is not None)
    takes_design = entry.takes_design or not draws
    model = parser.add_argument_group("model")
    data = parser.add_argument_group("data") if takes_design else None
    population = parser.add_argument_group("population") if draws else None
    priors = parser.add_argument_group("parameters" if command == "simulate" else "priors")
    # Flags of all models come first: an option of a model with the name of one of these can only be given by --set.
    if takes_design or entry.population is None:
        parser.add_table(priors, "prior")
    if command == "simulate":
        parser.add_table(priors, "truth")
        parser.add_sampling(["seed"], "random numbers")
        out = ("FILE", "table to write: .csv, .ecsv or .fits") if entry.takes_design else ("DIR", "folder to write")
    else:
        out = ("DIR", "folder to write; default: one in runs/")
    if command == "fit":
        parser.add_sampling(name for name in sample_options() if name != REPLACED)
        if entry.best_fit is not None:
            _add_best_fit(parser)
    elif command == "calibrate":
        from hbm_jax.inference import calibrate

        calibrate_defaults = {name: item.default for name, item in inspect.signature(calibrate).parameters.items()}
        parser.add_sampling(CALIBRATION_OPTIONS, defaults=calibrate_defaults)
        group = parser.add_argument_group("calibration")
        parser.add(group, "subset", metavar="N", type=int, help="use only N objects of the design, evenly spaced")
        text = "number of simulated data sets (default: 512)"
        parser.add(group, "num-replicates", metavar="N", type=int, default=512, help=text)
    parser.add_output(command, *out)
    sections = ", ".join(["sample", *OPEN])
    group = parser.add_set(f"any option as SECTION.NAME=VALUE, with SECTION one of {sections}")
    parser.add(group, "config", metavar="FILE", help="TOML file of these sections, such as config.toml of a run")
    if data is not None:
        _add_source(parser, data, command, entry)
    else:  # the simulator raises an error that explains why it takes none
        parser.add_argument("--design", dest="data.source", help=argparse.SUPPRESS)
    if population is not None:
        _add_population(parser, population, entry)
    _add_model(parser, model, entry, entry.options if takes_design else entry.population_options)
    if data is not None:
        _add_reader(parser, data, entry)
    if {"-h", "--help"} & set(argv):
        without_help = [word for word in argv if word not in ("-h", "--help")]
        priors.description = _parameters(parser, entry, without_help)
    return parser


def _sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop; empty if it is empty."""
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _examples(command: str, name: str, entry) -> str:
    """Return the examples of a command; for calibrate, those of fit with the data as design."""
    examples = entry.examples or (f"hbm-jax fit {name} --data my.csv --out runs/{name}",)
    selected = [example for example in examples if example.startswith(f"hbm-jax {command} ")]
    if command == "calibrate" and not selected:
        (fit, *_) = [example for example in examples if example.startswith("hbm-jax fit ")]
        design = fit.replace("--data ", "--design ").replace("--catalog ", "--design ")
        selected = [f"{design.replace(' fit ', ' calibrate ')}-calibration"]
    if command == "fit" and not entry.bundled and entry.simulate is not None:
        selected = list(examples)  # data to fit can be simulated first
    return "\n".join(["examples:", *(f"  {example}" for example in selected or examples)])


def _add_model(parser: Parser, group, entry, names: Iterable[str]) -> None:
    """Add the flags of options of the model."""
    fields = {item.name: item for item in dataclasses.fields(entry.model)}
    types_of = entry.options
    for name in names:
        text = fields[name].metadata.get("help") or HELP.get(name, "")
        parser.add_option(group, f"model.{name}", types_of[name], text, fields[name].default)


def _add_source(parser: Parser, group, command: str, entry) -> None:
    """Add the flags of the data, or of the sample whose design is used, and of their columns."""
    source = f"bundled sample ({', '.join(entry.bundled)}), or file" if entry.bundled else "file"
    default = f" (default: {entry.default_source})" if entry.default_source else ""
    if command == "fit":
        names = ("catalog", "--data") if "spectra" in entry.reader_options else ("data", "--catalog")
        parser.add(group, *names, dest="data.source", metavar="FILE", help=f"{source} to fit{default}")
    else:
        text = f"{source} whose design is used: all but the observed values{default}"
        parser.add(group, "design", dest="data.source", metavar="FILE", help=text)
    if "columns" in inspect.signature(entry.read).parameters:
        parser.add_table(group, "columns")


def _add_reader(parser: Parser, group, entry) -> None:
    """Add the flags of options of the reader."""
    parameters = inspect.signature(entry.read).parameters
    for name, kind in entry.reader_options.items():
        parser.add_option(group, f"data.{name}", kind, entry.help_of(name, entry.read), parameters[name].default)


def _add_best_fit(parser: Parser) -> None:
    """Add the flags of a best fit."""
    group = parser.add_argument_group("best fit")
    group.description = "Maximum likelihood in place of sampling; priors only bound the parameters."
    parser.add(group, "best-fit", action="store_true", help="fit without sampling, and write tables and figures")
    text = "confidence level of the intervals: 0.683 is a change of the statistic by 1, 0.9 by 2.706 (default: 0.683)"
    parser.add(group, "level", type=float, default=0.683, help=text)
    text = "band of fluxes [keV], such as '[0.5, 2]'; may be repeated (default: 0.5 to 2 and 2 to 10 keV)"
    parser.add(group, "band", metavar="LIST", action="append", help=text)
    parser.add(group, "redshift", type=float, metavar="NUMBER", help="redshift of the source, for luminosities")
    text = "free parameter whose profile likelihood is written and plotted; may be repeated"
    parser.add(group, "profile", metavar="NAME", action="append", help=text)
    text = "two free parameters whose contours are written and plotted, such as 'photon_index, nh'; may be repeated"
    parser.add(group, "contour", metavar="NAMES", action="append", help=text)


def _add_population(parser: Parser, group, entry) -> None:
    """Add the flags of a population that is drawn without a design."""
    for name, kind in entry.simulator_options.items():
        parser.add_option(group, f"simulator.{name}", kind, entry.help_of(name, entry.simulate))
    if entry.simulate is None:
        group.description = "With --num, the design is made up: redshifts, predictors, errors and groups."
        return
    parser.add_table(group, "population")
    text = "Without --design, a population is drawn." if entry.takes_design else ""
    if entry.population is not None:
        fields = [item for item in dataclasses.fields(entry.population) if item.name not in entry.population_options]
        properties = "; ".join(f"{item.name}{_default_of_field(item)}" for item in fields)
        text = f"{text} Properties and their defaults: {properties}."
    group.description = text.strip()


def _default_of_field(field: dataclasses.Field) -> str:
    """Return ``=`` and the default of a field; empty if there is none."""
    default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    if default is dataclasses.MISSING or default is None:
        return ""
    return f"={list(default) if isinstance(default, tuple) else default}"


def _parameters(parser: Parser, entry, argv: Sequence[str]) -> str:
    """Return a table of the parameters with their priors and units, for the model options among the arguments."""
    try:
        config = configuration(parser.parse(argv))
        options = {name: value for name, value in config["model"].items() if name != "name"}
        model = entry.build(options, config["prior"])
        from hbm_jax.models.priors import priors_to_text

        texts = priors_to_text(model.all_priors)
    except (OSError, TypeError, ValueError) as error:
        return f"Parameters depend on the options of the model, which are incomplete: {error}"
    width = max(map(len, texts), default=0)
    lines = [f"  {name:<{width}}  {text}  {model.units.get(name, '')}".rstrip() for name, text in texts.items()]
    data_units = " for standardised data" if getattr(model, "priors_in_data_units", False) else ""
    return "\n".join([f"Parameters with these options, and their priors{data_units}:", *lines])


def configuration(arguments: argparse.Namespace) -> dict:
    """Return the configuration merged from defaults, TOML file, flags and --set, in order of increasing precedence."""
    config = defaults()
    if arguments.config:
        config = merged(config, read_toml(arguments.config), arguments.config)
    for key, value in flags(arguments):
        set_key(config, key, value)
    for key, value in assignments("set", arguments.set):
        set_key(config, key, value)
    return config


def flags(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield key and value of every flag of the configuration that was given."""
    for dest, value in vars(arguments).items():
        section, _, name = dest.partition(".")
        if section == "table":
            flag = TABLES[name][0]
            yield from ((f"{name}.{key}", text) for key, text in assignments(flag, value))
        elif section in ("sample", *OPEN) and name and value is not None:
            key = dest.removesuffix("[]")
            # A single text is stored as it is if the option takes single values too, or if the text is a whole list.
            is_text = isinstance(value, list) and len(value) == 1 and (key == dest or value[0].lstrip().startswith("["))
            yield key, value[0] if is_text else value


def assignments(flag: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield keys and values from the texts KEY=VALUE of a flag; raise ConfigError for others."""
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--{flag} {text}: expected KEY=VALUE, found no '='.")
        yield key.strip(), value.strip()
