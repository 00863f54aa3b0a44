"""Profiles and contours of the parameters of a best fit, as XSPEC's steppar, with tables and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hbm_jax.inference.likelihood.grid import ProfileGrid


@dataclass(frozen=True, repr=False)
class Profile:
    """Rise of the fit statistic with one parameter, or with two, minimised over all others.

    Attributes
    ----------
    grid : ProfileGrid
        The grid of values and the rise.
    table : pandas.DataFrame
        One row per point: the parameters of the grid, ``rise`` of the statistic, and the values of all other
        parameters.
    units : dict of str to str
        Units of the parameters.
    """

    grid: ProfileGrid
    units: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        axes = zip(self.grid.names, self.grid.axes, strict=True)
        text = ", ".join(f"{name} from {axis[0]:.5g} to {axis[-1]:.5g} ({len(axis)})" for name, axis in axes)
        return f"Profile: {text}{'; ' if self.grid.note else ''}{self.grid.note}"

    @property
    def table(self) -> pd.DataFrame:
        """One row per point of the grid."""
        mesh = np.meshgrid(*self.grid.axes, indexing="ij")
        columns = {name: values.ravel() for name, values in zip(self.grid.names, mesh, strict=True)}
        columns["rise"] = self.grid.rise.ravel()
        return pd.DataFrame(columns | {name: values.ravel() for name, values in self.grid.values.items()})

    def plot(self) -> Any:
        """Return a figure: the curve of one parameter, or the contours of two at rises of 2.30, 4.61 and 9.21."""
        from hbm_jax.plotting.xray.profiles import contours, profile_curve

        return (profile_curve if len(self.grid.names) == 1 else contours)(self.grid, self.units)

    def _repr_png_(self) -> bytes:
        return self.plot()._repr_png_()

    def save(self, folder: str | Path, *, figures: bool = True) -> list[Path]:
        """Write ``profile_NAME.csv`` or ``contour_NAME_NAME.csv``, and the figure as PDF; return the files."""
        kind = "profile" if len(self.grid.names) == 1 else "contour"
        name = "_".join([kind, *self.grid.names]).replace("[", "_").replace("]", "")
        path = Path(folder) / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.table.to_csv(path, index=False)
        if not figures:
            return [path]
        self.plot().savefig(path.with_suffix(".pdf"))
        return [path, path.with_suffix(".pdf")]
