"""Best fit of spectra: parameters, fluxes and luminosities with errors, goodness, profiles, tables, figures."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd

from hbm_jax.best_fits import storage
from hbm_jax.best_fits.components import terms_of
from hbm_jax.best_fits.fluxes import BANDS, distance_of, flux_table, printed_fluxes, rows_of
from hbm_jax.best_fits.lines import line_table
from hbm_jax.best_fits.profiles import Profile
from hbm_jax.cosmology import Cosmology
from hbm_jax.inference import maximum_likelihood
from hbm_jax.inference.likelihood.grid import profile_grid
from hbm_jax.inference.likelihood.profile import MaximumLikelihood
from hbm_jax.inference.sampler.progress import Progress
from hbm_jax.models import SpectralFit
from hbm_jax.models.xray.folded_regions import FoldedRegions
from hbm_jax.models.xray.spectral_fit import Deviance
from hbm_jax.notation import quote, quoted_math
from hbm_jax.spectra.folding.fold import photons_in_bins
from hbm_jax.spectra.model.composition import Component
from hbm_jax.spectra.model.energetics import gaussian_lines
from hbm_jax.spectra.stack import SpectrumStack
from hbm_jax.spectra.statistics.goodness import Goodness

NUM_SIMULATIONS = 1000


@dataclass(frozen=True, repr=False)
class BestFit:
    """Best fit of a `SpectralFit`, with errors.

    Attributes
    ----------
    model, data
        The model and the spectra.
    likelihood : MaximumLikelihood
        Parameters with the intervals of their profile likelihood.
    deviance : Deviance
        The statistic, and the degrees of freedom.
    goodness : Goodness or None
        Comparison of the statistic with those of simulated data; None without simulations.
    fluxes : pandas.DataFrame
        One row per component (and ``total``), spectrum, band [keV] and quantity: ``flux``, absorbed [erg/cm^2/s];
        ``unabsorbed flux``; ``luminosity``, unabsorbed, in the band of the rest frame [erg/s]. ``lower`` and ``upper``
        are the ends of the interval of the profile likelihood of the flux itself; NaN for a flux of 0, or if they were
        not found. ``lower_open, upper_open``: the likelihood has not fallen enough at the bounds of the priors, whose
        flux is then the end (0 if it is eight decades below), so that ``upper`` is an upper limit if ``lower`` is open.
    spectra : pandas.DataFrame
        One row per group of channels: counts with their errors (for Poisson counts, the upper error of Gehrels 1986),
        and expected counts of the source, its components and the background.
    """

    model: SpectralFit
    data: SpectrumStack
    likelihood: MaximumLikelihood
    deviance: Deviance
    goodness: Goodness | None
    fluxes: pd.DataFrame = field(repr=False)
    spectra: pd.DataFrame = field(repr=False)

    def __repr__(self) -> str:
        lines = [self.model.description, "", str(self.likelihood), ""]
        statistic = self.data.statistic(self.model.statistic).name
        lines.append(f"{statistic} {self.deviance.total:.2f} for {self.deviance.degrees_of_freedom} degrees of freedom")
        if self.goodness is not None:
            number, p_value = len(self.goodness.simulated), self.goodness.total_p_value
            larger = round(p_value * (number + 1)) - 1  # of the definition of `Goodness.p_value`
            verb = "has" if larger == 1 else "have"
            lines[-1] += f"; p = {p_value:.2g}: {larger} of {number} simulated data sets {verb} a larger statistic"
        return "\n".join([*lines, "", printed_fluxes(self.fluxes)])

    @property
    def parameters(self) -> pd.DataFrame:
        """Table of the parameters with their intervals, ``likelihood.table``."""
        return self.likelihood.table

    @property
    def statistic(self) -> float:
        """Fit statistic at the best fit, ``deviance.total``."""
        return self.deviance.total

    @property
    def terms(self) -> dict[str, Component]:
        """Each additive component with the factors that multiply it, by label or name; empty if there is only one."""
        terms = terms_of(self.model.spectrum)
        return terms if len(terms) > 1 else {}

    @functools.cached_property
    def bound(self) -> Any:
        """The spectra with responses and tables precomputed for the model."""
        return self.model.bound(self.data)

    def profile(self, parameter: str, values: Any = 31, *, progress: Progress = False) -> Profile:
        """Return the rise of the statistic with one parameter, minimised over all others (XSPEC's steppar).

        Parameters
        ----------
        parameter : str
            A free parameter, by its name in ``likelihood.table``.
        values : array or int
            Its values, increasing; or their number, in a range that covers a rise of more than 9.21.
        progress : bool
            Whether to show the progress line.

        Raises
        ------
        ValueError
            As `hbm_jax.inference.profile_grid`.
        """
        return self._on_grid({parameter: values}, progress)

    def contour(self, x: str, y: str, values: Any = (25, 25), *, progress: Progress = False) -> Profile:
        """Return the rise of the statistic with two parameters, minimised over all others, for contours.

        Parameters
        ----------
        x, y : str
            Two free parameters, by their names in ``likelihood.table``.
        values : pair of arrays or ints
            As ``values`` of `profile`, for each of the two.
        progress : bool
            Whether to show the progress line.

        Raises
        ------
        ValueError
            As `hbm_jax.inference.profile_grid`; for twice the same parameter.
        """
        if x == y or len(values) != 2:
            raise ValueError(f"contour: expected two parameters, and values of each; found {x!r}, {y!r} and {values}.")
        return self._on_grid({x: values[0], y: values[1]}, progress)

    def lines(self, level: float | None = None, *, progress: Progress = False) -> pd.DataFrame:
        """Return photon fluxes and equivalent widths of the emission lines, with intervals or upper limits.

        Parameters
        ----------
        level, progress
            As in `hbm_jax.best_fits.line_table`, which describes the table.
        """
        level = self.likelihood.level if level is None else level
        tables = self.__dict__.setdefault("_lines", {})
        if level not in tables:
            tables[level] = line_table(self, level, progress=progress)
        return tables[level].copy()

    def _on_grid(self, grid: dict[str, Any], progress: Progress) -> Profile:
        """Return the profile likelihood on a grid, with the units of the parameters."""
        computed = profile_grid(self.model, self.bound, best=self.likelihood, grid=grid, progress=progress)
        return Profile(computed, self.model.units)

    def to_latex(self) -> str:
        """Return a row of a LaTeX table: every free parameter with its errors, or its upper limit."""
        cells = []
        for row in self.likelihood.table.itertuples():
            value, lower, upper = row.value, row.lower, row.upper
            if row.lower_open and not row.upper_open and (lower == value or np.isinf(lower)):
                cells.append(f"$<{upper:.4g}$")
            elif np.isfinite([value, lower, upper]).all():
                cells.append(quoted_math(quote(value, lower, upper)))
            else:
                cells.append(f"${value:.6g}$")
        return f"{' & '.join(cells)} & {self.deviance.total:.1f}/{self.deviance.degrees_of_freedom} \\\\"

    def plot(self, kind: Literal["spectra", "unfolded"] = "spectra", row: int = 0) -> Any:
        """Return a figure: counts, model and residuals, or the unfolded spectrum number ``row``; needs matplotlib."""
        from hbm_jax.plotting.xray.best_fit import best_fit_spectra, best_fit_unfolded

        if kind not in ("spectra", "unfolded"):
            raise ValueError(f"plot: expected 'spectra' or 'unfolded'; found {kind!r}.")
        return best_fit_spectra(self) if kind == "spectra" else best_fit_unfolded(self, row)

    def save(self, folder: str | Path, *, figures: bool = True) -> list[Path]:
        """Write tables, figures, a description and ``best_fit.npz``, for `hbm_jax.load`; return the files.

        Parameters
        ----------
        folder : path
            Folder, which is made if it does not exist.
        figures : bool
            Whether to write figures, which needs matplotlib.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"parameters": self.likelihood.table, "covariance": self.likelihood.covariance}
        written = []
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv")
            written.append(folder / f"{name}.csv")
        tables = {"fluxes": self.fluxes, "spectra": self.spectra}
        if gaussian_lines(self.model.spectrum):
            tables["lines"] = self.lines()
        for name, table in tables.items():
            table.to_csv(folder / f"{name}.csv", index=False)
            written.append(folder / f"{name}.csv")
        texts = {"best_fit.txt": f"{self}\n", "parameters.tex": f"{self.to_latex()}\n"}
        description = {
            "model": self.model.to_config(),
            "parameters": {name: np.asarray(value).tolist() for name, value in self.likelihood.parameters.items()},
            "level": self.likelihood.level,
            "log_likelihood": self.likelihood.log_likelihood,
            "statistic": self.deviance.total,
            "degrees_of_freedom": self.deviance.degrees_of_freedom,
            "p_value": None if self.goodness is None else self.goodness.total_p_value,
            "converged": self.likelihood.converged,
            "note": self.likelihood.note,
        }
        texts["best_fit.json"] = json.dumps(description, indent=1)
        for name, text in texts.items():
            (folder / name).write_text(text)
            written.append(folder / name)
        written.append(storage.write(self, folder / storage.FILE))
        if figures:
            kinds: tuple[Literal["spectra", "unfolded"], ...] = ("spectra", "unfolded")
            for kind in kinds:
                self.plot(kind).savefig(folder / f"{kind}.pdf")
                written.append(folder / f"{kind}.pdf")
        return written


def best_fit(
    model: SpectralFit,
    data: SpectrumStack,
    *,
    level: float = 0.683,
    seed: int = 0,
    num_starts: int = 8,
    bands: Sequence[tuple[float, float]] = BANDS,
    z: float | None = None,
    cosmology: Cosmology | None = None,
    num_simulations: int = NUM_SIMULATIONS,
    progress: Progress = False,
) -> BestFit:
    """Fit spectra by maximum likelihood, without sampling.

    Parameters
    ----------
    model : SpectralFit
        The model. Its priors only bound the parameters and draw the starting points.
    data : SpectrumStack
        The spectra.
    level : float
        Confidence level of all intervals: 0.683 is a change of the statistic by 1.0, 0.9 by 2.706.
    seed, num_starts, progress
        As in `hbm_jax.maximum_likelihood`.
    bands : sequence of (float, float)
        Bands of fluxes and luminosities [keV].
    z : float, optional
        Redshift of the source, for luminosities.
    cosmology : Cosmology, optional
        By default flat with H0 = 70 km/s/Mpc and Om0 = 0.3.
    num_simulations : int
        Number of simulated data sets for the goodness of fit; 0 for none.

    Raises
    ------
    ValueError
        As `hbm_jax.maximum_likelihood`, and for no band or one whose energies are not positive and in increasing order.

    Examples
    --------
    >>> best = best_fit(model, stack, level=0.9, bands=[(0.5, 10.0)])  # doctest: +SKIP
    >>> best.save("results")  # doctest: +SKIP
    """
    rows = rows_of(model, bands, z is not None, "best_fit")
    bound = model.bound(data)
    likelihood = maximum_likelihood(model, bound, level=level, seed=seed, num_starts=num_starts, progress=progress)
    goodness = None
    if num_simulations:
        goodness = model.goodness(bound, likelihood.parameters, seed=seed, num_simulations=num_simulations)
    distance = distance_of(z, cosmology)
    fluxes = flux_table(model, data, bound, likelihood, rows, distance, num_starts=num_starts, progress=progress)
    deviance = model.deviance(bound, likelihood.parameters)
    spectra = spectrum_table(model, data, bound, likelihood.parameters)
    best = BestFit(model, data, likelihood, deviance, goodness, fluxes, spectra)
    best.__dict__["bound"] = bound
    return best


def expected_parts(model: SpectralFit, data: SpectrumStack, bound: Any, parameters: Any) -> tuple[Any, Any]:
    """Return the expected counts of the source and of the background, (N, G) each."""
    if isinstance(bound, FoldedRegions):
        with jax.enable_x64(True):
            source, background = (np.asarray(part) for part in model._parts(bound, parameters))
        return source, np.where(data.used, background, 0.0)
    source = model.expected(bound, parameters)
    return source, np.where(data.used, data.expected_background(source, bound.statistic), 0.0)


def tabulated_for(spectrum: Component, values: Any) -> Component:
    """Return an expression whose tables cover only these parameter values, which is faster."""
    return spectrum.mapped(lambda part: part.tabulated_for(values))


def spectrum_table(model: SpectralFit, data: SpectrumStack, bound: Any, parameters: Any) -> pd.DataFrame:
    """Return `BestFit.spectra`."""
    source, background = expected_parts(model, data, bound, parameters)
    with jax.enable_x64(True):
        values = {name: np.asarray(value, float) for name, value in model.complete(parameters).items()}
    num = bound.num_sources
    factors = np.append(1.0, np.broadcast_to(values.pop("calibration", 1.0), max(num - 1, 0)))
    tables = []
    for row, name in enumerate(data.name):
        spectrum, index = (model.spectrum, row) if row < num else (model.background_spectrum, row - num)
        terms = terms_of(spectrum)
        used = np.asarray(data.used[row])
        counts, error = (np.asarray(getattr(data, key)[row])[used] for key in ("counts", "error"))
        if not data.has_gaussian_counts[row]:
            error = 1.0 + np.sqrt(counts + 0.75)
        columns: dict[str, Any] = {
            "spectrum": name, "e_min": np.asarray(data.e_min[row])[used], "e_max": np.asarray(data.e_max[row])[used],
            "counts": counts, "error": error, "source": source[row, used], "background": background[row, used],
        }  # fmt: skip
        if len(terms) > 1:
            energy, matrix = data.sparse_response(row)
            row_values = {
                key: np.ravel(value)[index : index + 1] if value.ndim else value[None]
                for key, value in values.items()
                if key in spectrum.parameters
            }
            factor = factors[row] if row < num else 1.0
            for label, term in terms.items():
                tabulated = tabulated_for(term.of_source(index), row_values)
                columns[label] = factor * np.asarray(photons_in_bins(tabulated, energy, row_values) @ matrix)[0]
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)
