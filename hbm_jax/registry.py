"""Models that can be named on the command line, each with its container, readers, options and figures."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hbm_jax import data, models
from hbm_jax.configuration import ConfigError, build_model, model_options, read_value
from hbm_jax.inference.results import model_of
from hbm_jax.models.base import full_name
from hbm_jax.names import choose
from hbm_jax.simulation import afterglows, bursts, spectra
from hbm_jax.spectra.stack import SpectrumStack

Figures = Mapping[str, tuple[str, Callable]]


def _no_figures(fit) -> Figures:
    return {}


@dataclass(frozen=True)
class Entry:
    """A model that can be named on the command line, with everything that command line and reports need for it.

    Attributes
    ----------
    model : type
        Subclass of `hbm_jax.models.base.PopulationModel`. Its fields other than ``priors`` are the options of the
        model, with the annotated types. The metadata of a field may contain its ``help``.
    container : type
        Data container, as described in `hbm_jax.data.protocol.Container`.
    read : callable
        ``read(path, *, columns=None, ...)`` for a table of the user. Further keyword-only arguments are the options of
        the ``[data]`` section of the configuration.
    bundled : dict of str to callable
        Data sets that are part of the package.
    default_source : str, optional
        Data set that is used if none is named.
    figures : callable
        ``figures(fit)`` returns the figures of this domain for the report of a fit, a mapping of name to caption and
        function of a fit. It is called when a report is written, so it may import matplotlib.
    reader_flags : dict of str to str
        Reader options that have a command-line flag, with their help.
    simulate : callable, optional
        ``simulate(config, folder, num=, rmf=, arf=, overwrite=)`` for populations that can be simulated without a
        design. It writes the file or folder and returns the text to print.
    takes_design : bool
        Whether a sample can be simulated with the design of another, which requires that a sample is a single table.
    """

    model: Any
    container: Any
    read: Callable
    bundled: Mapping[str, Callable] = field(default_factory=dict)
    default_source: str | None = None
    figures: Callable[[Any], Figures] = _no_figures
    reader_flags: Mapping[str, str] = field(default_factory=dict)
    simulate: Callable | None = None
    takes_design: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """Options of the model other than its priors, with their types."""
        return model_options(self.model)

    @property
    def reader_options(self) -> dict[str, Any]:
        """Keyword-only arguments of the reader other than ``columns``, with their types."""
        hints = typing.get_type_hints(self.read)
        parameters = inspect.signature(self.read).parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "columns"]
        return {name: hints.get(name, Any) for name in names}

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
            flag = "--catalog" if "spectra" in self.reader_flags else "--data"
            raise ConfigError(f"data: expected {bundled}, as in {flag} FILE, found none.")
        if source in self.bundled:
            for what, settings in (("columns", columns), ("options of [data]", options)):
                if settings:
                    raise ConfigError(
                        f"{what}: expected none for the bundled sample {source!r}, found {_names(settings)}."
                    )
            return self.bundled[source]()
        known = self.reader_options
        for name in options:
            choose("option of [data]", name, ("source", *known))
        values = {name: read_value(value, known[name], f"data.{name}") for name, value in options.items()}
        if not Path(source.partition("{")[0]).exists():  # name.pha{3} is a row of a file
            reason = "is neither" if self.bundled else "does not exist"
            raise ConfigError(f"data: expected {bundled}, found {source!r}, which {reason}.")
        return self.read(source, columns=dict(columns) or None, **values)

    def made(self, name: str, config: Mapping[str, Any]) -> bool:
        """Return whether a stored program is of this model and not of another class with the same name.

        Models of hbm_jax are stored under the name of their class. Other models also store their full name as
        ``class``; see `hbm_jax.models.base.configuration`.
        """
        options = {"priors", "class", *(item.name for item in dataclasses.fields(self.model))}
        if name != self.model.__name__ or not isinstance(config, Mapping):
            return False
        return config.get("class") == full_name(self.model) and set(config) <= options

    def restore(self, config: Mapping[str, Any], stored: Mapping[str, Any]):
        """Return the stored model and container, from `config` and from the result of `to_dict`."""
        options = {name: value for name, value in config.items() if name not in ("class", "priors")}
        return self.build(options, config.get("priors", {})), self.container.from_dict(stored)


def _names(names) -> str:
    return ", ".join(names)


def _supernova_figures(fit) -> Figures:
    from hbm_jax.plotting.supernovae.figures import FIGURES

    return FIGURES


def _distance_figures(fit) -> Figures:
    from hbm_jax.plotting.supernovae.distance_moduli import figures

    return figures(fit)


def _spectra_figures(fit) -> Figures:
    from hbm_jax.plotting.xray.figures import figures

    return figures(fit)


def _burst_figures(fit) -> Figures:
    from hbm_jax.plotting.bursts.figures import figures

    return figures(fit)


def _relation_figures(fit) -> Figures:
    from hbm_jax.plotting.linear.relation import figures

    return figures(fit)


def _normal_figures(fit) -> Figures:
    from hbm_jax.plotting.linear.normal import figures

    return figures(fit)


def _regression_figures(fit) -> Figures:
    from hbm_jax.plotting.regression.figures import figures

    return figures(fit)


TABLE_FLAGS = {
    "missing": "number that stands for a missing value, such as -9; may be repeated",
    "leave_out": "name of a source or row to leave out; may be repeated; 'bad' leaves out all that are unusable",
}
SPECTRA_FLAGS = {"spectra": "folder of the spectra; default: the folder of the catalogue"} | TABLE_FLAGS
MODELS = {
    "supernova": Entry(
        models.Supernova,
        data.Supernovae,
        data.read_supernovae,
        {"jla": data.load_jla},
        default_source="jla",
        figures=_supernova_figures,
    ),
    "supernova-correlated": Entry(
        models.CorrelatedSupernova,
        data.CorrelatedSupernovae,
        data.read_correlated_supernovae,
        reader_flags={"covariance": "blocks of a covariance in alpha and beta: .npz, .fits, or a folder"} | TABLE_FLAGS,
    ),
    "hubble-diagram": Entry(
        models.HubbleDiagram,
        data.DistanceModuli,
        data.read_distance_moduli,
        figures=_distance_figures,
        reader_flags=TABLE_FLAGS,
    ),
    "afterglow": Entry(
        models.Afterglow,
        data.Afterglows,
        data.read_afterglows,
        figures=_spectra_figures,
        reader_flags=SPECTRA_FLAGS,
        simulate=afterglows.simulate,
        takes_design=False,
    ),
    "spectrum": Entry(
        models.SpectralFit,
        SpectrumStack,
        data.read_grouped_spectra,
        figures=_spectra_figures,
        reader_flags={"also": "another spectrum to fit jointly with that of --data; may be repeated"},
        simulate=spectra.simulate,
        takes_design=False,
    ),
    "golenetskii": Entry(
        models.Golenetskii,
        data.Bursts,
        data.read_bursts,
        {"konus-amati": data.load_konus, "konus-yonetoku": functools.partial(data.load_konus, "yonetoku")},
        figures=_burst_figures,
        simulate=bursts.simulate,
        reader_flags=TABLE_FLAGS,
    ),
    "golenetskii-counts": Entry(
        models.GolenetskiiCounts,
        data.BurstSpectra,
        data.read_burst_spectra,
        figures=_burst_figures,
        reader_flags=SPECTRA_FLAGS,
        simulate=bursts.simulate_spectra,
        takes_design=False,
    ),
    "relation": Entry(
        models.Relation,
        data.PointsInGroups,
        data.read_relation,
        figures=_relation_figures,
        reader_flags=TABLE_FLAGS,
    ),
    "normal": Entry(
        models.Normal,
        data.ValuesInGroups,
        data.read_values,
        {"eight-schools": data.load_eight_schools},
        figures=_normal_figures,
        reader_flags=TABLE_FLAGS,
    ),
    "normal-vectors": Entry(
        models.NormalVectors,
        data.ValuesInGroups,
        data.read_values,
        figures=_normal_figures,
        reader_flags=TABLE_FLAGS,
    ),
    "regression": Entry(
        models.Regression,
        data.RegressionData,
        data.read_regression,
        figures=_regression_figures,
        reader_flags=TABLE_FLAGS,
    ),
    "rates": Entry(
        models.Rates,
        data.RegressionData,
        data.read_regression,
        figures=_regression_figures,
        reader_flags=TABLE_FLAGS,
    ),
}


def named(name: str | None) -> Entry:
    """Return the entry of a model by name.

    Raises
    ------
    ValueError
        If no model has that name; the message suggests the nearest.
    """
    if not name:
        raise ConfigError(
            f"No model named: expected one of {', '.join(MODELS)}, as in 'hbm-jax fit {next(iter(MODELS))}'."
        )
    return MODELS[choose("model", name, tuple(MODELS))]


def entry_of_fit(fit) -> Entry | None:
    """Return the entry that matches the model (or a base class of it) and the data of a fit; None if none does."""
    for entry in MODELS.values():
        if isinstance(model_of(fit), entry.model) and isinstance(fit.data, entry.container):
            return entry
    return None


def entry_of_stored(name: str, config: Mapping[str, Any] | None) -> Entry | None:
    """Return the entry that matches the class name and configuration of a stored model; None if none does."""
    for entry in MODELS.values():
        if config is not None and entry.made(name, config):
            return entry
    return None


def flags() -> dict[str, tuple[Any, str]]:
    """Return the model options with a command-line flag, name to type and help; other models reject them."""
    options: dict[str, tuple[Any, str]] = {}
    for entry in MODELS.values():
        helps = {item.name: str(item.metadata.get("help", "")) for item in dataclasses.fields(entry.model)}
        for name, type_ in entry.options.items():
            known_type, known_help = options.get(name, (type_, ""))
            text = "; ".join(filter(None, dict.fromkeys([known_help, helps[name]])))
            # If two models have different types for one name, the flag takes text, which each model parses.
            options[name] = (type_ if known_type == type_ else str, text)
    return options


def reader_flags() -> dict[str, tuple[Any, str]]:
    """Return the reader options with a command-line flag, name to type and help; other readers reject them."""
    return {
        name: (entry.reader_options[name], text)
        for entry in MODELS.values()
        for name, text in entry.reader_flags.items()
    }
