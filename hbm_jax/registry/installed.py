"""Models of hbm_jax and of installed packages, which register them in the entry-point group ``hbm_jax.models``."""

import functools
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from importlib.metadata import EntryPoint, entry_points

from hbm_jax.configuration import ConfigError
from hbm_jax.registry.entry import Entry

GROUP = "hbm_jax.models"


class Models(MutableMapping[str, Entry]):
    """Entries by name of the model: those of hbm_jax, then those of installed packages, imported on first use."""

    def __init__(self, entries: Mapping[str, Entry]):
        self._entries = dict(entries)

    @functools.cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        """Entry points of installed packages by name; one whose name is taken is skipped with a warning."""
        points: dict[str, EntryPoint] = {}
        for point in entry_points(group=GROUP):
            previous = points.get(point.name)
            if point.name in self._entries or (previous is not None and previous.value != point.value):
                owner = "hbm_jax" if previous is None else _package(previous)
                _warn(point, f"expected a name that no other model has; {owner} has one of this name")
            else:
                points[point.name] = point
        return dict(sorted(points.items()))

    def __getitem__(self, name: str) -> Entry:
        if name not in self._entries:
            point = self._installed[name]
            try:
                entry = point.load()
            except Exception as error:  # an import runs any code
                raise ModelImportError(f"{_described(point)}: expected an Entry; found {_error_text(error)}") from error
            if not isinstance(entry, Entry):
                raise ModelImportError(f"{_described(point)}: expected an Entry; found {type(entry).__name__}.")
            self._entries[name] = entry
        return self._entries[name]

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._installed

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._entries, *self._installed]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def summaries(self) -> dict[str, str]:
        """Return one line on each model; nothing is imported."""
        lines = {name: entry.summary for name, entry in self._entries.items()}
        packages = {name: point.dist for name, point in self._installed.items() if point.dist is not None}
        installed = {name: f"{dist.metadata['Summary'] or 'of'} ({dist.name})" for name, dist in packages.items()}
        return {name: lines.get(name) or installed.get(name, "") for name in self}

    def examine(self) -> tuple[list[str], list[str]]:
        """Import the models of installed packages; return those that work, with their packages, and the errors."""
        working, problems = [], []
        for name, point in self._installed.items():
            try:
                self[name]
                working.append(f"{name} of {_package(point)}")
            except ModelImportError as error:
                problems.append(str(error))
        return working, problems

    def with_class(self, name: str, module: str) -> Iterator[Entry]:
        """Yield the entries whose model class is called `name`.

        Entries that are already imported come first, then those of the package of ``module``. A package whose entry
        cannot be imported causes a warning.
        """
        yield from [entry for entry in self._entries.values() if entry.class_name == name]
        package = module.partition(".")[0]
        if package == __name__.partition(".")[0]:
            return
        remaining = [point for key, point in self._installed.items() if key not in self._entries]
        for point in sorted(remaining, key=lambda point: point.module.partition(".")[0] != package):
            try:
                entry = self[point.name]
            except ModelImportError as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            if entry.class_name == name:
                yield entry


class ModelImportError(ConfigError):
    """An entry point of the group ``hbm_jax.models`` that cannot be imported or is not an `Entry`."""


def _package(point: EntryPoint) -> str:
    """Return name and version of the package of an entry point."""
    return "another package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _described(point: EntryPoint) -> str:
    """Return model, package and object of an entry point, for messages."""
    return f"model {point.name!r} of {_package(point)} (entry point {point.value})"


def _error_text(error: Exception) -> str:
    """Return type and message of an exception."""
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}"


def _warn(point: EntryPoint, problem: str) -> None:
    """Warn that an entry point is not used."""
    warnings.warn(f"{_described(point)} is not used: {problem}.", stacklevel=3)
