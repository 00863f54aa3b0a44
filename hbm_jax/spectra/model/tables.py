"""Components from table models of XSPEC: spectra, factors and optical depths interpolated on a grid of parameters."""

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import sparse

from hbm_jax.spectra.model.absorbers import _at_redshift, _redshift
from hbm_jax.spectra.model.composition import Component, Parameter, Values
from hbm_jax.spectra.model.quadrature import check_band
from hbm_jax.spectra.ogip.table_models import TableModel, TableParameter, read_table_model

__all__ = ["AdditiveTable", "ExponentialTable", "MultiplicativeTable"]

_LN10 = math.log(10.0)
_Z = Parameter("", "Uniform(0.0, 10.0)", "redshift")


@dataclass(frozen=True)
class _Table(Component):
    """Component read from a table model; see `AdditiveTable`."""

    _: KW_ONLY
    file: str = ""
    z: Any = 0.0
    additive: ClassVar[bool] = False

    def __post_init__(self):
        object.__setattr__(self, "file", str(self.file))
        table = self.table
        if table.additive != self.additive:
            kinds = "an additive table (atable)", "factors or optical depths (mtable or etable)"
            expected, actual = kinds if self.additive else kinds[::-1]
            raise ValueError(f"{self.file}: expected {expected}; found {actual}.")
        if self.z is not None:
            object.__setattr__(self, "z", _redshift(self.z))

    def _of_source(self, index):
        return dataclasses.replace(self, z=self.z[index]) if isinstance(self.z, tuple) else self

    @property
    def table(self) -> TableModel:
        """Contents of the file, which is read once."""
        return read_table_model(self.file)

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Parameters of the file, its energy scale if it has one, and the redshift if it is not fixed."""
        table = self.table
        parameters = {p.name: _parameter(p, table.name) for p in table.parameters}
        if table.has_energy_scale:
            parameters["energy_scale"] = Parameter("", "1.0", "factor of the energies of the table")
        return parameters | ({"z": _Z} if self.z is None else {})

    @property
    def _energy_is_free(self) -> bool:
        """True if the energies of the table depend on parameters, such as the redshift."""
        return self.z is None or self.table.has_energy_scale

    def _one_plus_z(self, params: dict[str, jax.Array]) -> Any:
        """Return 1 + z, with the fixed redshift, (N,) for N sources, or that among the parameters."""
        return 1.0 + (params["z"] if self.z is None else np.asarray(self.z))

    def _stretch(self, params: dict[str, jax.Array]) -> Any:
        """Return the ratio of the energy in the table to the observed energy."""
        return self._one_plus_z(params) / params.get("energy_scale", 1.0)

    def _interpolated(self, rows: Any, params: dict[str, jax.Array]) -> jax.Array:
        """Return the model (..., K), interpolated on the grid, from rows (1 + num_additional, ..., num_grid, K)."""
        table = self.table
        weights = grid_weights(table.interpolated, params)
        factors = [params[p.name] for p in table.parameters if not p.values]
        total = jnp.asarray(rows[0], weights.dtype)
        for factor, row in zip(factors, rows[1:], strict=True):
            total = total + factor[..., None, None] * jnp.asarray(row, weights.dtype)
        return jnp.matmul(weights[..., None, :], total, precision="highest")[..., 0, :]

    def _rows(self) -> np.ndarray:
        """Return the spectra of the file, (1 + num_additional, num_grid, num_energies)."""
        table = self.table
        return np.concatenate([table.spectra[None], table.additional])


def _parameter(parameter: TableParameter, model: str) -> Parameter:
    """Return unit, prior and description of a parameter of a file."""
    prior = repr(parameter.initial) if parameter.fixed else f"Uniform({parameter.low!r}, {parameter.high!r})"
    kind = "parameter" if parameter.values else "additional parameter"
    return Parameter(parameter.unit, prior, f"{kind} {parameter.name} of {model}")


def grid_weights(parameters: tuple[TableParameter, ...], params: dict[str, jax.Array]) -> jax.Array:
    """Return the weights of all grid points in the linear interpolation, (..., num_grid); NaN outside the grid."""
    weights: Any = None
    for parameter in parameters:
        value, nodes = params[parameter.name], np.array(parameter.values)
        rounding = 1e-6 * (nodes[-1] - nodes[0])
        inside = (value >= nodes[0] - rounding) & (value <= nodes[-1] + rounding)
        if parameter.logarithmic:
            value, nodes = jnp.log(jnp.where(inside, value, nodes[0])), np.log(nodes)
        points = jnp.asarray(nodes, value.dtype)
        cell = jnp.clip(jnp.searchsorted(points, value, side="right") - 1, 0, len(nodes) - 2)
        fraction = (value - points[cell]) / (points[cell + 1] - points[cell])
        index = jnp.arange(len(nodes))
        axis_weights = jnp.where(index == cell[..., None], 1.0 - fraction[..., None], 0.0)
        axis_weights = jnp.where(index == cell[..., None] + 1, fraction[..., None], axis_weights)
        axis_weights = jnp.where(inside[..., None], axis_weights, jnp.nan)
        if weights is None:
            weights = axis_weights
        else:
            product = weights[..., :, None] * axis_weights[..., None, :]
            weights = product.reshape(*product.shape[:-2], -1)
    return weights


def _cumulative(rows: np.ndarray) -> np.ndarray:
    """Return minus the sums from each edge to the last bin, (..., num_energies + 1).

    Differences of these sums keep their relative accuracy where a spectrum has fallen by many decades.
    """
    sums = np.cumsum(rows[..., ::-1], axis=-1)[..., ::-1]
    return -np.concatenate([sums, np.zeros((*rows.shape[:-1], 1))], axis=-1)


def _interpolated_rows(edges: np.ndarray, values: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Return values (R, G, num_edges) interpolated linearly at concrete energies (..., K), as (R, ..., G, K)."""
    cell = np.clip(np.searchsorted(edges, energy, side="right") - 1, 0, len(edges) - 2)
    fraction = np.clip((energy - edges[cell]) / (edges[cell + 1] - edges[cell]), 0.0, 1.0)
    interpolated = (1.0 - fraction) * values[..., cell] + fraction * values[..., cell + 1]
    return np.moveaxis(interpolated, 1, -2)


def _photons_between(edges: np.ndarray, rows: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Return the photons of bins (R, G, num_energies) between concrete energies (..., K + 1), as (R, ..., G, K).

    Photons are uniform in each bin. They are sums of parts of bins, not differences of cumulative sums, whose rounding
    errors would be negative photons where a spectrum has fallen by sixteen decades.
    """
    num = energy.shape[-1] - 1
    flat_rows, photons = rows.reshape(-1, rows.shape[-1]), []
    for limits in energy.reshape(-1, num + 1):
        cuts = np.unique(np.concatenate([edges, limits]))
        middle = 0.5 * (cuts[1:] + cuts[:-1])
        in_table, in_bin = (np.searchsorted(grid, middle, side="right") - 1 for grid in (edges, limits))
        inside = (in_table >= 0) & (in_table < len(edges) - 1) & (in_bin >= 0) & (in_bin < num)
        in_table, in_bin = in_table[inside], in_bin[inside]
        fraction = np.diff(cuts)[inside] / np.diff(edges)[in_table]
        overlap = sparse.csr_matrix((fraction, (in_table, in_bin)), shape=(len(edges) - 1, num))
        photons.append((overlap.T @ flat_rows.T).T.reshape(*rows.shape[:2], num))
    return np.stack(photons, axis=1).reshape(rows.shape[0], *energy.shape[:-1], rows.shape[1], num)


_interp = jnp.vectorize(jnp.interp, signature="(k),(n),(n)->(k)")


@dataclass(frozen=True)
class AdditiveTable(_Table):
    """Photon spectrum of a table model, XSPEC's atable.

    Raises ValueError if the file is a table of factors, or the redshift is invalid, and DataError if the file cannot be
    read.

    Parameters
    ----------
    label : str
        Prefix of the parameter names.
    file : str
        FITS file of OGIP/92-009. In text: ``atable("file.mod")``, or ``atable("file.mod", label)``.
    z : float, tuple or None
        Redshift of the source: energies and photon rates are divided by 1 + z. A tuple gives one for each source, with
        one row of energies per source. None makes it a parameter. The keyword REDSHIFT of the file need not be set.

    Notes
    -----
    The spectra are interpolated linearly in each parameter or its logarithm, according to METHOD in the file. The model
    is 10^log10_amplitude times the sum of the interpolated spectrum and of the additional spectra, each times its
    parameter. Photons are uniform within each bin of the table. The model is folded on all energy bins of a response.
    It is 0 at energies outside the table and NaN outside the grid. Its gradient is discontinuous at the grid points.

    Examples
    --------
    >>> AdditiveTable("gas", file="apec.mod")  # doctest: +SKIP
    """

    additive: ClassVar[bool] = True
    narrow: ClassVar[bool] = True
    integrable: ClassVar[bool] = True

    @property
    def own_parameters(self) -> dict[str, Parameter]:
        """Parameters of the file, and the normalisation."""
        norm = Parameter("", "Normal(-3.0, 2.0)", "normalisation of the table")
        return super().own_parameters | {"log10_amplitude": norm}

    def _norm(self, params):
        return jnp.exp(_LN10 * params["log10_amplitude"])[..., None]

    def _tables(self, energy):
        """Return photon densities at the energies; if these are free in the table, energies and densities per bin."""
        observed_energy = self._concrete(energy)
        edges, density = self.table.energy, self._rows() / np.diff(self.table.energy)
        if self._energy_is_free:
            return observed_energy, density
        table_energy = _at_redshift(observed_energy, self.z)
        inside = (table_energy >= edges[0]) & (table_energy < edges[-1])
        cell = np.clip(np.searchsorted(edges, table_energy, side="right") - 1, 0, len(edges) - 2)
        return np.moveaxis(np.where(inside, density[..., cell], 0.0), 1, -2)

    def _evaluate(self, tables, values):
        """Return the photon spectrum, (..., K), which is uniform in each bin of the file."""
        params = self._unprefixed(values)
        if not self._energy_is_free:
            return self._norm(params) * self._interpolated(tables, params)
        energy, density = tables
        edges, stretch = self.table.energy, self._stretch(params)[..., None]

        def look_up(table_energy, spectrum):
            """Return the spectrum of the bins that contain the energies, 0 outside the table."""
            cell = jnp.searchsorted(jnp.asarray(edges, table_energy.dtype), table_energy, side="right") - 1
            inside = (cell >= 0) & (cell < len(edges) - 1)
            return jnp.where(inside, spectrum[jnp.clip(cell, 0, len(edges) - 2)], 0.0)

        spectrum = self._interpolated(density, params)
        table_energy = jnp.asarray(energy, spectrum.dtype) * stretch
        density_at_energy = jnp.vectorize(look_up, signature="(k),(n)->(k)")(table_energy, spectrum)
        return self._norm(params) * density_at_energy / jnp.asarray(params.get("energy_scale", 1.0))[..., None]

    def _limits(self, edges):
        """Return the photons in bins by grid point; if energies are free, the edges and cumulative photons."""
        if self._energy_is_free:
            return edges, _cumulative(self._rows())
        photons = _photons_between(self.table.energy, self._rows(), _at_redshift(np.asarray(edges), self.z))
        return photons / self._one_plus_z({})[..., None, None]

    def _integrals(self, limits, values):
        """Return the photons in the bins, (..., K)."""
        params = self._unprefixed(values)
        if not self._energy_is_free:
            return self._norm(params) * self._interpolated(limits, params)
        edges, cumulative = limits
        totals = self._interpolated(cumulative, params)
        table_edges = jnp.asarray(edges, totals.dtype) * self._stretch(params)[..., None]
        photons = jnp.diff(_interp(table_edges, jnp.asarray(self.table.energy, totals.dtype), totals))
        return self._norm(params) * photons / jnp.asarray(self._one_plus_z(params))[..., None]

    def integral(self, values: Values, low: ArrayLike, high: ArrayLike, power: int = 0) -> jax.Array:
        """Return the integral as in `Component.integral`, exact for photons that are uniform in the bins."""
        check_band(low, high)
        params = self._unprefixed(values)
        edges = self.table.energy
        spectrum = self._interpolated(self._rows() / np.diff(edges), params)
        stretch = jnp.asarray(self._stretch(params))[..., None]
        limits = (jnp.asarray(limit, spectrum.dtype)[..., None] * stretch for limit in (low, high))
        inside = jnp.clip(jnp.asarray(edges, spectrum.dtype), *limits)
        moments = jnp.diff(inside ** (power + 1)) / (power + 1)
        # The moments are those of energies in the table: observed energies times the stretch.
        total = jnp.sum(spectrum * moments, axis=-1) / stretch[..., 0] ** power / self._one_plus_z(params)
        return self._norm(params)[..., 0] * total


@dataclass(frozen=True)
class MultiplicativeTable(_Table):
    """Factor of a table model, XSPEC's mtable.

    Interpolated in the parameters as in `AdditiveTable`, and linearly in energy between the middles of the bins. It is
    constant below the first middle and above the last.

    Parameters
    ----------
    label, file, z
        As in `AdditiveTable`, without the division of photon rates; the same errors are raised.

    Examples
    --------
    >>> MultiplicativeTable("warm", file="absorber.mod")  # doctest: +SKIP
    """

    kind: ClassVar[str] = "multiplicative"
    absorbs: ClassVar[bool] = True

    def _tables(self, energy):
        """Return the factors at the energies by grid point; if energies are free, the energies and all factors."""
        observed_energy = self._concrete(energy)
        if self._energy_is_free:
            return observed_energy, self._rows()
        return _interpolated_rows(self._middles, self._rows(), _at_redshift(observed_energy, self.z))

    @property
    def _middles(self) -> np.ndarray:
        """Middles of the bins of the table."""
        edges = self.table.energy
        return 0.5 * (edges[1:] + edges[:-1])

    def _evaluate(self, tables, values):
        return self._table_values(tables, values)

    def _table_values(self, tables, values):
        """Return the factor, or the optical depth, at the energies, (..., K); arguments as of `_evaluate`."""
        params = self._unprefixed(values)
        if not self._energy_is_free:
            return self._interpolated(tables, params)
        energy, rows = tables
        spectrum = self._interpolated(rows, params)
        table_energy = jnp.asarray(energy, spectrum.dtype) * jnp.asarray(self._stretch(params))[..., None]
        return _interp(table_energy, jnp.asarray(self._middles, spectrum.dtype), spectrum)


@dataclass(frozen=True)
class ExponentialTable(MultiplicativeTable):
    """Factor exp(-tau) with the optical depth tau of a table model, XSPEC's etable.

    Parameters
    ----------
    label, file, z
        As in `MultiplicativeTable`.

    Examples
    --------
    >>> ExponentialTable("warm", file="depth.mod")  # doctest: +SKIP
    """

    def _log(self, tables, values):
        return -self._table_values(tables, values)

    def _evaluate(self, tables, values):
        return jnp.exp(self._log(tables, values))
