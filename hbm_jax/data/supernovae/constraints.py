"""Gaussian constraints on the expansion history: compressed microwave background and baryon acoustic oscillations."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jax.tree_util import register_dataclass
from scipy.linalg import block_diag

from hbm_jax.cosmology.compressed import BAO, CMB, QUANTITIES
from hbm_jax.data.building import named_errors
from hbm_jax.data.supernovae.dense_covariance import checked_covariance, only_one_of, read_covariance
from hbm_jax.data.tables import read_table
from hbm_jax.names import choose
from hbm_jax.validation import (
    DataError,
    Floats,
    float_vector,
    frozen_array,
    reject_rows,
    require_present,
    require_same_length,
    text_tuple,
)

COLUMNS = ("quantity", "z", "value", "sigma")


@register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class GaussianConstraints:
    """Measured quantities with their covariance, to combine with a sample of supernovae.

    Build it with `from_columns` or `hbm_jax.data.read_constraints`. The sum of two instances joins them as independent
    measurements.

    Attributes
    ----------
    quantity : tuple of str
        N names among ``R, l_A`` (microwave background), ``DM_over_rd, DH_over_rd, DV_over_rd`` (baryon acoustic
        oscillations), ``H0, Om0, omega_m, omega_b, r_d``; see `hbm_jax.cosmology.compressed`.
    z : (N,)
        Redshift of each distance over r_d; 0 for the other quantities.
    value : (N,)
        Measured values.
    covariance : (N, N)
        Covariance of the measured values, positive definite.
    source : str
        Citation.
    """

    quantity: tuple[str, ...] = field(metadata={"static": True})
    z: Floats
    value: Floats
    covariance: Floats
    source: str = field(default="", metadata={"static": True})

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], *, source: str = "") -> "GaussianConstraints":
        """Validate columns and build the container.

        Parameters
        ----------
        columns
            ``quantity``, ``value``, and either ``sigma`` or ``covariance`` (N, N); ``z``, required for distances over
            r_d.
        source
            Citation.

        Raises
        ------
        DataError
            For unknown quantities, missing values, a distance over r_d without a redshift, and an invalid covariance.

        Examples
        --------
        >>> GaussianConstraints.from_columns({"quantity": ["H0"], "value": [73.0], "sigma": [1.0]}).value
        array([73.])
        """
        for key in ("quantity", "value"):
            require_present(key, columns)
        names = text_tuple(columns["quantity"], "quantity", "")
        unknown = np.array([name not in QUANTITIES for name in names])
        reject_rows(unknown, list(names), "quantity", f"one of {', '.join(QUANTITIES)}", names)
        value = float_vector(columns["value"], "value", names)
        z = float_vector(columns.get("z", np.zeros(len(names))), "z", names, allow_missing=True)
        z = np.where(np.isnan(z), 0.0, z)
        require_same_length({"quantity": len(names), "value": len(value), "z": len(z)})
        no_redshift = np.array([name in BAO for name in names]) & (z <= 0)
        reject_rows(no_redshift, z, "z", "a redshift above 0 for a distance over r_d", names)
        if only_one_of(("sigma", "covariance"), columns) == "sigma":
            sigma = float_vector(columns["sigma"], "sigma", names)
            reject_rows(sigma <= 0, sigma, "sigma", "an error above 0", names)
            require_same_length({"quantity": len(names), "sigma": len(sigma)})
            covariance = np.diag(sigma**2)
        else:
            covariance = checked_covariance(columns["covariance"], "covariance", names)
        return cls(names, frozen_array(z), frozen_array(value), frozen_array(covariance), str(source))

    def __len__(self) -> int:
        return len(self.quantity)

    def __repr__(self) -> str:
        return f"GaussianConstraints({', '.join(self.quantity)})"

    def __add__(self, other: "GaussianConstraints") -> "GaussianConstraints":
        """Return the constraints of both operands, without correlation between them."""
        return GaussianConstraints(
            self.quantity + other.quantity,
            frozen_array(np.concatenate([self.z, other.z])),
            frozen_array(np.concatenate([self.value, other.value])),
            frozen_array(block_diag(self.covariance, other.covariance)),
            "; ".join(filter(None, (self.source, other.source))),
        )

    def describe(self) -> str:
        """Return a one-sentence summary: number of constraints, quantities and source."""
        cited = f" ({self.source})" if self.source else ""
        return f"{len(self)} Gaussian constraints: {', '.join(dict.fromkeys(self.quantity))}{cited}."

    @property
    def needs_baryons(self) -> bool:
        """True if the predictions depend on Ob0 h^2, as those of the microwave background do."""
        return bool({*CMB, "omega_b"} & set(self.quantity))

    @property
    def needs_sound_horizon(self) -> bool:
        """True if the predictions depend on the sound horizon at the drag epoch."""
        return bool({*BAO, "r_d"} & set(self.quantity))

    @property
    def needs_hubble(self) -> bool:
        """True if the constraints depend on H0 separately, not only through the product H0 r_d."""
        return bool({*CMB, "omega_b", "omega_m", "H0", "r_d"} & set(self.quantity))

    def to_config(self) -> dict[str, Any]:
        """Return a dict of lists and strings, the input of `from_config`."""
        plain = {"quantity": list(self.quantity), "source": self.source}
        return plain | {key: np.asarray(getattr(self, key)).tolist() for key in ("z", "value", "covariance")}

    @classmethod
    def from_config(cls, stored: Mapping[str, Any]) -> "GaussianConstraints":
        """Build the container from the output of `to_config`, or from a configuration table with the same keys."""
        known = {item.name for item in dataclasses.fields(cls)} | {"sigma"}
        unknown = set(stored) - known
        if unknown:
            raise DataError(f"constraints: expected the keys {', '.join(sorted(known))}; found {', '.join(unknown)}.")
        columns = {key: np.asarray(value) for key, value in stored.items() if key != "source"}
        return cls.from_columns(columns, source=str(stored.get("source", "")))


def read_constraints(path: str | os.PathLike, *, covariance: str | os.PathLike | None = None) -> GaussianConstraints:
    """Read Gaussian constraints from a table.

    Parameters
    ----------
    path
        CSV, ECSV or FITS file with the columns ``quantity``, ``value``, ``z`` and, for independent measurements,
        ``sigma``; or blank-separated text with rows ``z value quantity`` as published by the DESI collaboration, with
        names such as ``DM_over_rs``.
    covariance
        File of the covariance, for correlated measurements; see
        `hbm_jax.data.supernovae.dense_covariance.read_covariance`.

    Raises
    ------
    FileNotFoundError
        If a file does not exist.
    DataError
        As for `GaussianConstraints.from_columns`; the message begins with the path.
    """
    columns: dict[str, Any]
    with named_errors(path):
        if Path(path).suffix in (".txt", ".dat") and Path(path).exists():
            rows = [line.split() for line in Path(path).read_text().splitlines() if line.strip() and line[0] != "#"]
            if any(len(row) != 3 for row in rows):
                num_entries = next(len(row) for row in rows if len(row) != 3)
                raise DataError(f"expected rows of three entries, z value quantity; found a row of {num_entries}.")
            z, value, names = zip(*rows, strict=True)
            columns = {"z": z, "value": value, "quantity": [name.replace("_over_rs", "_over_rd") for name in names]}
        else:
            table = read_table(path)
            columns = {key: table.values(key) for key in COLUMNS if key in table.columns}
        if covariance is not None:
            columns.pop("sigma", None)
            columns["covariance"] = read_covariance(covariance, len(columns.get("value", ())))
        return GaussianConstraints.from_columns(columns, source=Path(path).name)


def planck2018_distance_priors() -> GaussianConstraints:
    """Return the shift parameter, acoustic scale and baryon density of Planck 2018 (TT,TE,EE+lowE).

    Chen, Huang & Wang 2019, JCAP 02, 028 (arXiv:1808.05724), for flat LCDM: R = 1.7502 +- 0.0046, l_A = 301.471 +-
    0.090, Ob0 h^2 = 0.02236 +- 0.00015, with the published inverse covariance.
    """
    precision = np.array(
        [
            [94392.3971, -1360.4913, 1664517.2916],
            [-1360.4913, 161.4349, 3671.6180],
            [1664517.2916, 3671.6180, 79719182.5162],
        ]
    )
    columns = {
        "quantity": ["R", "l_A", "omega_b"],
        "value": [1.750235, 301.4707, 0.02235976],
        "covariance": np.linalg.inv(precision),
    }
    return GaussianConstraints.from_columns(columns, source="Planck 2018, compressed: Chen, Huang & Wang 2019")


def desi2024_bao() -> GaussianConstraints:
    """Return distances in units of the sound horizon from baryon acoustic oscillations in the first year of DESI.

    DESI Collaboration 2024 (arXiv:2404.03002), table 1.
    """
    pairs = [
        (0.510, 13.62, 0.25, 20.98, 0.61, -0.445),
        (0.706, 16.85, 0.32, 20.08, 0.60, -0.420),
        (0.930, 21.71, 0.28, 17.88, 0.35, -0.389),
        (1.317, 27.79, 0.69, 13.82, 0.42, -0.444),
        (2.330, 39.71, 0.94, 8.52, 0.17, -0.477),
    ]
    isotropic = [(0.295, 7.93, 0.15), (1.491, 26.07, 0.67)]
    return _acoustic_oscillations(isotropic, pairs, "DESI 2024, arXiv:2404.03002, table 1")


def desi_dr2_bao() -> GaussianConstraints:
    """Return distances in units of the sound horizon from baryon acoustic oscillations in three years of DESI.

    DESI Collaboration 2025 (arXiv:2503.14738), the distances of table IV; errors and correlations are those of the
    likelihood published with it (CobayaSampler/bao_data, CC BY 4.0), to four and three digits.
    """
    pairs = [
        (0.510, 13.588, 0.1684, 21.863, 0.4289, -0.452),
        (0.706, 17.351, 0.1799, 19.455, 0.3339, -0.395),
        (0.934, 21.576, 0.1618, 17.641, 0.2010, -0.347),
        (1.321, 27.601, 0.3246, 14.176, 0.2246, -0.398),
        (1.484, 30.512, 0.7636, 12.817, 0.5180, -0.494),
        (2.330, 38.989, 0.5317, 8.632, 0.1011, -0.431),
    ]
    return _acoustic_oscillations([(0.295, 7.942, 0.0761)], pairs, "DESI DR2, arXiv:2503.14738")


def _acoustic_oscillations(isotropic: list, anisotropic: list, source: str) -> GaussianConstraints:
    """Return constraints from isotropic and anisotropic distances.

    Isotropic rows are (z, D_V / r_d, error), anisotropic ones (z, D_M / r_d, error, D_H / r_d, error, correlation).
    """
    columns: dict[str, Any] = {"quantity": [], "z": [], "value": []}
    blocks = []
    for z, dv, sigma_dv in isotropic:
        columns["quantity"] += ["DV_over_rd"]
        columns["z"] += [z]
        columns["value"] += [dv]
        blocks.append(np.array([[sigma_dv**2]]))
    for z, dm, sigma_dm, dh, sigma_dh, correlation in anisotropic:
        columns["quantity"] += ["DM_over_rd", "DH_over_rd"]
        columns["z"] += [z, z]
        columns["value"] += [dm, dh]
        covariance = correlation * sigma_dm * sigma_dh
        blocks.append(np.array([[sigma_dm**2, covariance], [covariance, sigma_dh**2]]))
    return GaussianConstraints.from_columns(columns | {"covariance": block_diag(*blocks)}, source=source)


PUBLISHED = {
    "planck-2018": planck2018_distance_priors,
    "desi-2024-bao": desi2024_bao,
    "desi-dr2-bao": desi_dr2_bao,
}


def load_constraints(*names: str) -> GaussianConstraints:
    """Return published constraints by name, joined as independent measurements.

    Parameters
    ----------
    names
        ``"planck-2018"``, ``"desi-2024-bao"`` or ``"desi-dr2-bao"``.

    Raises
    ------
    ValueError
        For an unknown name; the message suggests the nearest.

    Examples
    --------
    >>> len(load_constraints("planck-2018", "desi-dr2-bao"))
    16
    """
    if not names:
        raise ValueError(f"load_constraints: expected one or more of {', '.join(PUBLISHED)}; found none.")
    parts = [PUBLISHED[choose("constraints", name, tuple(PUBLISHED))]() for name in names]
    return sum(parts[1:], parts[0])
