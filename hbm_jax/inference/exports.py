"""Results of a fit in the formats of other programs: LaTeX, astropy, pandas and GetDist."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from hbm_jax.files import atomic_write
from hbm_jax.inference.blinding.blinding import WORD, Blinding
from hbm_jax.inference.program import supports_of, symbols_of
from hbm_jax.inference.sampler.target import support_bounds
from hbm_jax.inference.verdict import Verdict
from hbm_jax.notation import UNIT_SYMBOLS, column_format, escaped, quote, quoted_math

if TYPE_CHECKING:
    from astropy.table import Table


class Exports:
    """Methods of a `Fit` that return or write its results in other formats."""

    verdict: Verdict
    program: Callable | None
    tree: xr.DataTree
    summary: Callable[..., pd.DataFrame]

    @property
    def posterior(self) -> xr.Dataset:
        """Draws of every named site."""
        return self.tree["posterior"].to_dataset()

    @property
    def blinding(self) -> Blinding | None:
        """Hidden shifts of parameters; None for a fit that is not blinded. Another fit may be given the same ones."""
        return Blinding.of(self.tree)

    @property
    def units(self) -> dict[str, str]:
        """Units of parameters; dimensionless ones are left out. Blinded parameters have the word "blinded" added."""
        units, names = self._attribute("units"), self._attribute(WORD)
        return units | {name: f"{units[name]}, {WORD}" if name in units else WORD for name in names}

    @property
    def symbols(self) -> dict[str, str]:
        """Symbol of each parameter that has one, in the notation of matplotlib and LaTeX."""
        symbols = symbols_of(self.program) if self.program is not None else {}
        return {str(name): symbols[str(name)] for name in self.posterior if name in symbols} | self._attribute("symbol")

    def _attribute(self, key: str) -> dict[str, str]:
        """Return an attribute of the draws by name of the site."""
        return {str(name): values.attrs[key] for name, values in self.posterior.items() if key in values.attrs}

    def to_latex(self, parameters: Sequence[str] | None = None, *, symbols: Mapping[str, str] | None = None) -> str:
        r"""Return the summary as a LaTeX tabular: symbols, medians with 68 % intervals, and units.

        Elements that do not vary, such as the diagonal of a correlation matrix, are left out.

        Parameters
        ----------
        parameters : sequence of str, optional
            Sites to include, as in `Fit.summary`.
        symbols : mapping of str to str, optional
            Symbols by name of the site, such as ``{"slope": "$m$"}``; they replace those of the program
            (`Fit.symbols`). A parameter without a symbol appears with its name.

        Examples
        --------
        >>> print(fit.to_latex(["w0"]))  # doctest: +SKIP
        \begin{tabular}{ll}
        \hline
        Parameter & Median, 68\,\% interval \\
        \hline
        $w_0$ & $-0.89^{+0.19}_{-0.22}$ \\
        \hline
        \end{tabular}
        """
        summary = self.summary(parameters)
        varies = summary["sd"] > 1e-12 * summary["median"].abs()  # not by rounding only
        return tabular(summary[varies], self.symbols | dict(symbols or {}))

    def to_table(self, parameters: Sequence[str] | None = None) -> "Table":
        """Return the summary as an astropy Table, which can be written as ECSV, FITS and other formats.

        Parameters
        ----------
        parameters : sequence of str, optional
            Sites to include, as in `Fit.summary`.

        Returns
        -------
        astropy.table.Table
            The name of each parameter and the columns of `Fit.summary`; the verdict is in ``meta``. Numbers are shown,
            and written as CSV, with at least two digits of each parameter's standard deviation.

        Examples
        --------
        >>> fit.to_table().write("parameters.ecsv")  # doctest: +SKIP
        """
        from astropy.table import Table

        summary = self.summary(parameters)
        columns = {"parameter": summary.index.to_numpy(str)}
        columns |= {str(name): summary[name].to_numpy(str if name == "unit" else float) for name in summary}
        table = Table(columns, meta={"verdict": str(self.verdict)})
        for name in set(table.colnames) - {"parameter", "unit"}:
            table[name].format = _table_format(name, summary)
        return table

    def to_dataframe(self, parameters: Sequence[str] | None = None, *, max_size: int = 20) -> pd.DataFrame:
        """Return the draws as a pandas DataFrame.

        Parameters
        ----------
        parameters : sequence of str, optional
            Sites to include. Default: all sites of at most ``max_size`` elements.
        max_size : int
            Number of elements above which a site is omitted, unless ``parameters`` names it.

        Returns
        -------
        pandas.DataFrame
            One row per draw, indexed by ``chain`` and ``draw``; one column per scalar parameter or element. The
            names of blinded parameters are in ``attrs["blinded"]``.

        Raises
        ------
        ValueError
            If a name in ``parameters`` is not a site.
        """
        selected = self.summary(parameters, max_size=max_size).index
        columns: dict[str, np.ndarray] = {}
        for _, labels, values in labelled_draws(self.posterior, self.verdict):
            columns |= dict(zip(labels, np.concatenate(values).T, strict=True))
        sizes = self.posterior.sizes
        index = pd.MultiIndex.from_product([range(sizes[name]) for name in ("chain", "draw")], names=["chain", "draw"])
        table = pd.DataFrame({label: columns[label] for label in selected}, index=index)
        if self.blinding is not None:
            table.attrs[WORD] = list(self.blinding.names)
        return table

    def save_getdist(self, root: str | os.PathLike, parameters: Sequence[str] | None = None) -> list[Path]:
        """Write the draws in the text format of GetDist and CosmoMC.

        Parameters
        ----------
        root : path
            Beginning of the names of the files. ``root_1.txt`` and so on hold the chains: weight 1, minus the log
            density of the unconstrained parameters, parameters. ``root.paramnames`` has names and symbols,
            ``root.ranges`` the bounds of the priors, without those of blinded parameters. Existing files are replaced.
        parameters : sequence of str, optional
            Sites to include, as in `to_dataframe`.

        Returns
        -------
        list of pathlib.Path
            The files, which ``getdist.loadMCSamples(root)`` reads.

        Raises
        ------
        ValueError
            If a name in ``parameters`` is not a site.
        """
        draws = self.to_dataframe(parameters)
        log_density = self.tree["sample_stats"]["lp"].transpose("chain", "draw").to_numpy()
        root = Path(root)
        root.parent.mkdir(parents=True, exist_ok=True)
        contents = {".paramnames": "".join(f"{_plain(name)}\t{self._symbol(name)}\n" for name in draws)}
        bounds = (
            {name: support_bounds(support) for name, support in supports_of(self.program).items()}
            if self.program
            else {}
        )
        hidden = () if self.blinding is None else self.blinding.names
        contents[".ranges"] = "".join(
            f"{_plain(name)}\t" + "\t".join(f"{end:.9g}" if np.isfinite(end) else "N" for end in bounds[base]) + "\n"
            for name in draws
            if (base := name.partition("[")[0]) in bounds and base not in hidden
        )
        for chain, rows in draws.groupby(level="chain"):
            values = np.column_stack([np.ones(len(rows)), -log_density[chain], rows.to_numpy()])
            contents[f"_{chain + 1}.txt"] = "".join(" ".join(f"{value:.9e}" for value in row) + "\n" for row in values)
        files = []
        for ending, text in contents.items():
            files.append(root.with_name(root.name + ending))
            with atomic_write(files[-1]) as part:
                part.write_text(text, encoding="utf-8")
        return files

    def _symbol(self, name: str) -> str:
        """Return the symbol of a parameter or element without dollar signs, for GetDist."""
        base, bracket, element = name.partition("[")
        symbol = self.symbols.get(base, rf"\mathrm{{{escaped(base)}}}").strip("$")
        if self.blinding is not None and base in self.blinding.names:
            symbol += rf"\ \mathrm{{({WORD})}}"
        index = element.removesuffix("]").replace(" ", "")
        return f"{symbol}_{{{escaped(index)}}}" if bracket and "_" not in symbol else symbol + bracket + element


def labelled_draws(posterior: xr.Dataset, verdict: Verdict) -> Iterator[tuple[str, list[str], np.ndarray]]:
    """Yield name, labels of the elements and draws (chain, draw, element) of every site of a posterior."""
    labels = iter(verdict.table.index)
    for name, variable in posterior.items():
        values = variable.transpose("chain", "draw", ...).to_numpy()
        values = values.reshape(*values.shape[:2], -1)
        yield str(name), [next(labels) for _ in range(values.shape[-1])], values


def _table_format(name: str, summary: pd.DataFrame) -> str:
    """Return the format of a column of `Fit.summary`: enough digits for every row."""
    formats = {"r_hat": ".4f", "ess_bulk": ".0f", "ess_tail": ".0f", "sd": ".3g", "mcse_mean": ".3g", "mcse_sd": ".3g"}
    if name in formats:
        return formats[name]
    largest = summary[["median", "lower_68", "upper_68"]].abs().max(axis=1)
    return column_format(largest.to_numpy(), summary["sd"].to_numpy())


def tabular(summary: pd.DataFrame, symbols: Mapping[str, str]) -> str:
    """Return the rows of a summary as a LaTeX tabular, with a column of units if any parameter has one."""
    units = bool(summary["unit"].any())
    lines = [_latex_row(str(name), row, symbols, units) for name, row in summary.iterrows()]
    columns, unit = ("lll", " & Unit") if units else ("ll", "")
    head = rf"Parameter & Median, 68\,\% interval{unit} \\"
    rules = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline"]
    return "\n".join([*rules, *lines, r"\hline", r"\end{tabular}"])


def _latex_row(name: str, row: pd.Series, symbols: Mapping[str, str], units: bool) -> str:
    """Return the row of a parameter in LaTeX."""
    base, bracket, element = name.partition("[")
    symbol = symbols.get(base, escaped(base)) + escaped(bracket + element)
    unit = f" & {UNIT_SYMBOLS.get(row['unit'], escaped(row['unit']))}" if units else ""
    return rf"{symbol} & {quoted_math(quote(row['median'], row['lower_68'], row['upper_68']))}{unit} \\"


def _plain(name: str) -> str:
    """Return a name without the characters that would end it in the files of GetDist."""
    return "".join("_" if character in " \t[],*" else character for character in name).rstrip("_")
