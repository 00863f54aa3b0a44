"""The models that can be named on the command line, each with its container, readers, options and figures."""

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
from hbm_jax.models.protocol import full_name
from hbm_jax.names import choose
from hbm_jax.simulation import afterglows, bursts, spectra
from hbm_jax.spectra.stack import SpectrumStack

Figures = Mapping[str, tuple[str, Callable]]


def _no_figures(fit) -> Figures:
    return {}


@dataclass(frozen=True)
class Entry:
    """A model that can be named on the command line: all that the surfaces know about its domain.

    Attributes
    ----------
    model : type
        Frozen dataclass of choices, as `hbm_jax.models.protocol.Model` describes; its fields other than ``priors`` are
        its options, of the types they are annotated with. A field's metadata may hold its ``help``.
    container : type
        Its data container, as `hbm_jax.data.protocol.Container` describes.
    read : callable
        ``read(path, *, columns=None, ...)`` for a user's table; further keyword-only arguments are the options of the
        configuration's ``[data]`` section.
    bundled : dict of str to callable
        Data sets that ship with the package.
    default_source : str, optional
        The data set taken where none is named.
    figures : callable
        ``figures(fit)`` returns the domain's own figures for the report of a fit, name to caption and function of a
        fit; called when a report is written, so that it may import matplotlib.
    reader_flags : dict of str to str
        Those of the reader's options that have a flag of their own on the command line, with their help.
    simulate : callable, optional
        ``simulate(config, folder, num=, rmf=, arf=, overwrite=)``, where a population can be simulated without a
        design: writes the file or folder and returns what to print.
    takes_design : bool
        Whether a sample can be simulated on the design of another: not where it does not fit one table.
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
        """Choices of the model other than its priors, with their types."""
        return model_options(self.model)

    @property
    def reader_options(self) -> dict[str, Any]:
        """Keyword-only arguments of the reader other than ``columns``, with their types."""
        hints = typing.get_type_hints(self.read)
        parameters = inspect.signature(self.read).parameters.values()
        names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "columns"]
        return {name: hints.get(name, Any) for name in names}

    def build(self, options: Mapping[str, Any], priors: Mapping[str, Any]):
        """Return the model of a configuration's ``[model]`` and ``[prior]`` sections.

        Raises
        ------
        ConfigError
            For an option of the wrong kind.
        ValueError
            For an unknown option or prior, and what the model refuses.
        """
        return build_model(self.model, options, priors)

    def load(self, section: Mapping[str, Any], columns: Mapping[str, str]):
        """Return the container of a configuration's ``[data]`` and ``[columns]`` sections.

        Raises
        ------
        ConfigError
            If there is no such source, or options where none apply.
        ValueError, OSError
            From the reader.
        """
        options = {name: value for name, value in section.items() if name != "source"}
        source = str(section.get("source") or self.default_source or "")
        bundled = f"a bundled sample ({', '.join(self.bundled)}) or a file" if self.bundled else "a file"
        if not source:
            flag = "--catalog" if "spectra" in self.reader_flags else "--data"
            raise ConfigError(f"data: expected {bundled}, as in {flag} FILE, found none named.")
        if source in self.bundled:
            for what, given in (("columns", columns), ("options of [data]", options)):
                if given:
                    raise ConfigError(
                        f"{what}: expected none for the bundled sample {source!r}, found {_names(given)}."
                    )
            return self.bundled[source]()
        known = self.reader_options
        for name in options:
            choose("option of [data]", name, ("source", *known))
        read = {name: read_value(value, known[name], f"data.{name}") for name, value in options.items()}
        if not Path(source.partition("{")[0]).exists():  # name.pha{3} is a row of a file
            neither = "neither" if self.bundled else "not there"
            raise ConfigError(f"data: expected {bundled}, found {source!r}, which is {neither}.")
        return self.read(source, columns=dict(columns) or None, **read)

    def made(self, name: str, config: Mapping[str, Any]) -> bool:
        """Whether a program stored under a class name with its configuration is of this model, not of a namesake.

        Models of hbm_jax are stored under the bare name of their class, others with their full name as ``class``; see
        `hbm_jax.models.protocol.configuration`.
        """
        options = {"priors", "class", *(item.name for item in dataclasses.fields(self.model))}
        if name != self.model.__name__ or not isinstance(config, Mapping):
            return False
        return config.get("class") == full_name(self.model) and set(config) <= options

    def restore(self, config: Mapping[str, Any], stored: Mapping[str, Any]):
        """Return model and container as they were stored: `to_config` of the one, `to_dict` of the other."""
        options = {name: value for name, value in config.items() if name not in ("class", "priors")}
        return self.build(options, config.get("priors", {})), self.container.from_dict(stored)


def _names(given) -> str:
    return ", ".join(given)


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
    "missing": "number that means that there is no value, such as -9; may be repeated",
    "leave_out": "source or row to leave out, by name; may be repeated; 'bad' leaves out all that cannot be used",
}
SPECTRA_FLAGS = {"spectra": "folder of the spectra; that of the catalogue where omitted"} | TABLE_FLAGS
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
        reader_flags={"also": "another spectrum to fit together with that of --data; may be repeated"},
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
    """Return the entry of a model's name.

    Raises
    ------
    ValueError
        If none has that name; the nearest is offered.
    """
    if not name:
        raise ConfigError(
            f"No model named: expected one of {', '.join(MODELS)}, as in 'hbm-jax fit {next(iter(MODELS))}'."
        )
    return MODELS[choose("model", name, tuple(MODELS))]


def of_fit(fit) -> Entry | None:
    """Return the entry whose model, or a subclass of it, and whose data a fit holds; None for a user's program."""
    for entry in MODELS.values():
        if isinstance(model_of(fit), entry.model) and isinstance(fit.data, entry.container):
            return entry
    return None


def of_stored(name: str, config: Mapping[str, Any] | None) -> Entry | None:
    """Return the entry whose model was stored under a class name with its configuration; None for any other program."""
    for entry in MODELS.values():
        if config is not None and entry.made(name, config):
            return entry
    return None


def flags() -> dict[str, tuple[Any, str]]:
    """Options of all models that have a flag of their own, name to type and help; a model refuses those of another."""
    found: dict[str, tuple[Any, str]] = {}
    for entry in MODELS.values():
        texts = {item.name: str(item.metadata.get("help", "")) for item in dataclasses.fields(entry.model)}
        for name, kind in entry.options.items():
            both, text = found.get(name, (kind, ""))
            # Text, which either model reads its own way, where two models mean different kinds by one name.
            found[name] = (kind if both == kind else str, "; ".join(filter(None, dict.fromkeys([text, texts[name]]))))
    return found


def reader_flags() -> dict[str, tuple[Any, str]]:
    """Options of all readers that have a flag of their own, name to type and help; other readers refuse them."""
    return {
        name: (entry.reader_options[name], text)
        for entry in MODELS.values()
        for name, text in entry.reader_flags.items()
    }
