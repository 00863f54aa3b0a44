"""Entry of the registry: a model with its container, reader, options and figures."""

import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from hbm_jax.configuration import ConfigError, build_model, model_options, read_value
from hbm_jax.names import choose

Figures = Mapping[str, tuple[str, Callable]]


# Help texts of options that have the same meaning in all models, readers and simulators.
HELP = {
    "format": "file format, if the suffix does not identify it: csv, ecsv, fits, ascii, ...",
    "missing": "number that stands for a missing value, such as -9; may be repeated",
    "leave_out": "name of an object or row to leave out; may be repeated; 'bad' leaves out all that are unusable",
    "spectra": "folder of the spectra; default: the folder of the catalogue",
    "rmf": "redistribution matrix (RMF file)",
    "arf": "effective area (ARF file), if the matrix does not include it",
    "background": "background spectrum, instead of the one named in the header",
    "energies": "energy range to use [keV], such as '[0.5, 7]'",
    "grouping": "file, none, min_counts, min_signal_to_noise, channels_per_group, width or optimal",
    "group_by": "counts, signal-to-noise ratio, channels or width [keV] of a group, for that method",
    "bad_channels": "whether to include channels flagged as bad",
    "H0": "Hubble constant [km/s/Mpc]",
    "Om0": "matter density",
    "num": "number of objects to simulate",
}


def imported(reference: Any) -> Any:
    """Return the object to which the text ``module:name`` refers; anything else is returned unchanged."""
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    return attrgetter(name)(importlib.import_module(module))


class Imported:
    """Field of a dataclass that may be given as ``module:name``, which is imported when the field is first read."""

    def __init__(self, *default):
        self.default = default

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        if instance is None:
            if self.default:
                return self.default[0]
            raise AttributeError(self.name)  # dataclasses take this to mean: no default
        value = instance.__dict__[self.name] = imported(instance.__dict__[self.name])
        return value

    def __set__(self, instance, value):
        instance.__dict__[self.name] = value


@dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """A model that can be named on the command line, with everything that command line and reports need for it.

    Classes and functions may be given as text ``module:name``, which is imported on first use.

    Attributes
    ----------
    model : type
        Frozen dataclass of options, such as a subclass of ``hbm_jax.models.base.PopulationModel``. Its fields other
        than ``priors`` are the options of the model, with the annotated types; ``Literal`` lists the values of one.
        The metadata of a field may contain its ``help``.
    container : type
        Data container, as described in `hbm_jax.data.protocol.Container`.
    read : callable
        ``read(path, *, columns=None, ...)`` for a table of the user. Further keyword-only arguments are the options of
        the ``[data]`` section of the configuration. ``Annotated[type, "text"]`` gives the help of one.
    bundled : dict of str to callable
        Data sets that are part of the package.
    default_source : str, optional
        Data set that is used if none is named.
    figures : callable or mapping
        Figures of this domain for the report of a fit: a mapping of name to (caption, function of a fit), or
        ``figures(fit)`` that returns it. It is imported when a report is written, so its module may import matplotlib.
    simulate : callable, optional
        ``simulate(config, out, *, overwrite, ...)`` for populations that can be simulated without a design. It writes
        the file or folder `out` and returns the text to print. Further keyword-only arguments are options of the
        command line; they are None where not given.
    design : callable, optional
        ``design(model, num, rng, ...)`` returns a `hbm_jax.simulation.designs.Design` of `num` objects, with which a
        sample is simulated from nothing. Further keyword-only arguments are options of the reader.
    best_fit : callable, optional
        ``best_fit(model, data, *, ...)`` fits by maximum likelihood and returns an object with a text form, a
        ``save(folder, figures=...)`` and the attribute ``likelihood``; further keyword-only arguments are options of
        ``hbm-jax fit MODEL --best-fit``.
    population : type, optional
        Dataclass whose fields are the ``[population]`` section of the configuration of `simulate`.
    population_options : tuple of str
        Options of the model that `simulate` takes.
    takes_design : bool
        Whether a sample can be simulated with the design of another; samples must then be single tables.
    summary : str
        One-line summary.
    examples : tuple of str
        Command lines to start from, each beginning with ``hbm-jax``.
    help : dict of str to str
        Help texts of options of reader and simulator, before those of their annotations.
    """

    model: Any = Imported()
    container: Any = Imported()
    read: Any = Imported()
    bundled: Mapping[str, Any] = field(default_factory=dict)
    default_source: str | None = None
    figures: Any = Imported(None)
    simulate: Any = Imported(None)
    design: Any = Imported(None)
    best_fit: Any = Imported(None)
    population: Any = Imported(None)
    population_options: tuple[str, ...] = ()
    takes_design: bool = True
    summary: str = ""
    examples: tuple[str, ...] = ()
    help: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """Name of the class of the model; nothing is imported."""
        model = self.__dict__["model"]
        return model.rpartition(":")[2] if isinstance(model, str) else model.__name__

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model other than its priors, with their types."""
        return model_options(self.model)

    @property
    def reader_options(self) -> dict[str, Any]:
        """Keyword-only arguments of the reader other than ``columns``, with their types."""
        return _keywords(self.read, "columns")

    @property
    def simulator_options(self) -> dict[str, Any]:
        """Keyword-only arguments of the simulator other than ``overwrite``, with their types."""
        if self.simulate is None:
            return {} if self.design is None else {"num": int | None}
        return _keywords(self.simulate, "overwrite")

    @property
    def design_options(self) -> tuple[str, ...]:
        """Options of the reader that describe a sample, not its file: those of the made-up design."""
        return () if self.design is None else tuple(_keywords(self.design, ""))

    @property
    def options_of_samples(self) -> tuple[str, ...]:
        """Options of the reader that a simulated sample needs as well: `design_options`, and those without default."""
        parameters = inspect.signature(self.read).parameters
        required = [name for name in self.reader_options if parameters[name].default is inspect.Parameter.empty]
        return (*self.design_options, *required)

    def help_of(self, name: str, function: Callable | None) -> str:
        """Return the help of an option of the reader or simulator; empty if there is none."""
        if function is None:
            return HELP[name]
        hint = typing.get_type_hints(function, include_extras=True).get(name)
        annotated = next((text for text in getattr(hint, "__metadata__", ()) if isinstance(text, str)), "")
        return self.help.get(name) or annotated or HELP.get(name, "")

    def figures_of(self, fit) -> Figures:
        """Return the figures of this domain for the report of a fit."""
        return self.figures(fit) if callable(self.figures) else self.figures or {}

    def build(self, options: Mapping[str, Any], priors: Mapping[str, Any]):
        """Return the model described by the ``[model]`` and ``[prior]`` sections of a configuration.

        Raises
        ------
        ConfigError
            For an option of the wrong type, or a missing option without default.
        ValueError
            For an unknown option or prior, or a value that the model rejects.
        """
        return build_model(self.model, options, priors)

    def load(self, section: Mapping[str, Any], columns: Mapping[str, str]):
        """Return the container described by the ``[data]`` and ``[columns]`` sections of a configuration.

        Raises
        ------
        ConfigError
            If the source does not exist, or for options or columns of a bundled sample.
        ValueError, OSError
            As raised by the reader.
        """
        options = {name: value for name, value in section.items() if name != "source"}
        source = str(section.get("source") or self.default_source or "")
        bundled = f"a bundled sample ({', '.join(self.bundled)}) or a file" if self.bundled else "a file"
        if not source:
            flag = "--catalog" if "spectra" in self.reader_options else "--data"
            raise ConfigError(f"data: expected {bundled}, as in {flag} FILE, found none.")
        if source in self.bundled:
            for kind, settings in (("columns", columns), ("options of [data]", options)):
                if settings:
                    raise ConfigError(
                        f"{kind}: expected none for the bundled sample {source!r}, found {', '.join(settings)}."
                    )
            return imported(self.bundled[source])()
        known = self.reader_options
        for name in options:
            choose("option of [data]", name, ("source", *known))
        values = {name: read_value(value, known[name], f"data.{name}") for name, value in options.items()}
        if not Path(source.partition("{")[0]).exists():  # name.pha{3} is a row of a file
            reason = "is neither" if self.bundled else "does not exist"
            raise ConfigError(f"data: expected {bundled}, found {source!r}, which {reason}.")
        return self.read(source, columns=dict(columns) or None, **values)

    def made(self, name: str, config: Mapping[str, Any]) -> bool:
        """Return whether a stored program is an instance of this model, not of another class with the same name.

        Models of hbm_jax are stored under the name of their class. Other models also store their full name as
        ``class``; see ``hbm_jax.models.base.configuration``.
        """
        if name != self.class_name or not isinstance(config, Mapping):
            return False
        from hbm_jax.models.base import full_name

        options = {"priors", "class", *(item.name for item in fields(self.model))}
        return config.get("class") == full_name(self.model) and set(config) <= options

    def restore(self, config: Mapping[str, Any], stored: Mapping[str, Any]):
        """Return the stored model and container; ``stored`` is the result of ``to_dict`` of the container."""
        options = {name: value for name, value in config.items() if name not in ("class", "priors")}
        return self.build(options, config.get("priors", {})), self.container.from_dict(stored)


def _keywords(function: Callable, omitted: str) -> dict[str, Any]:
    """Return the keyword-only arguments of a function with their types."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != omitted]
    return {name: hints.get(name, Any) for name in names}
