"""Download of published samples that cannot be distributed with the package."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hbm_jax.data.supernovae.distance_moduli import DistanceModuli
from hbm_jax.data.supernovae.distance_tables import read_distance_moduli
from hbm_jax.names import did_you_mean

FOLDER = "HBM_JAX_DATA"  # environment variable with the download folder, instead of the user's cache


class DownloadError(OSError):
    """Failed download of a published sample; the message contains the URL and an alternative without a network."""


@dataclass(frozen=True)
class Download:
    """Files of a release.

    Attributes
    ----------
    url : str
        URL of the folder with the files.
    table, covariance : (file name, SHA-256 or None)
        A file without a verified checksum (None) is accepted with any content.
    citation : str
        Papers to cite.
    """

    url: str
    table: tuple[str, str | None]
    covariance: tuple[str, str | None] | None
    citation: str


# The checksums of the tables are those of our copies of the files. Those of the covariances could not be verified.
DOWNLOADS: dict[str, Download] = {
    "pantheon+": Download(
        "https://raw.githubusercontent.com/PantheonPlusSH0ES/DataRelease/main/Pantheon%2B_Data/4_DISTANCES_AND_COVAR/",
        ("Pantheon+SH0ES.dat", "1cb0fc379ef066afdc2ffd1857681cc478024570d8a3eba284fb645775198cf8"),
        ("Pantheon+SH0ES_STAT+SYS.cov", None),
        "Scolnic et al. 2022, ApJ 938, 113; Brout et al. 2022, ApJ 938, 110",
    ),
    "des-sn5yr": Download(
        "https://raw.githubusercontent.com/des-science/DES-SN5YR/main/4_DISTANCES_COVMAT/",
        ("DES-SN5YR_HD.csv", "95ab1e9f5460a056de37d2b4e28df73ce0c7fd471baba9fb37f1667f41b7901c"),
        ("STAT+SYS.txt.gz", None),
        "DES Collaboration 2024, ApJL 973, L14",
    ),
    "union3": Download(
        "https://raw.githubusercontent.com/rubind/union3_release/main/",
        ("mu_mat_union3_cosmo=2_mu.fits", None),
        None,
        "Rubin et al. 2025, ApJ 986, 231",
    ),
    "pantheon2018": Download(
        "https://raw.githubusercontent.com/dscolnic/Pantheon/master/",
        ("lcparam_full_long_zhel.txt", None),
        ("sys_full_long.txt", None),
        "Scolnic et al. 2018, ApJ 859, 101",
    ),
}


def fetch_distance_moduli(
    name: str, *, folder: str | os.PathLike | None = None, known_hash: dict[str, str | None] | None = None
) -> dict[str, Path]:
    """Download the files of a published sample, unless they are already in the folder.

    Parameters
    ----------
    name : str
        ``"pantheon+"``, ``"des-sn5yr"``, ``"union3"``, ``"pantheon2018"``.
    folder : path, optional
        Folder of the files. Default: the environment variable HBM_JAX_DATA, or else the user's cache. Existing files
        are not downloaded again.
    known_hash : dict of str to str or None
        Checksums (SHA-256) by file name, in place of the built-in ones; None accepts any content.

    Returns
    -------
    dict of str to pathlib.Path
        Paths of ``"table"`` and, if it is a separate file, ``"covariance"``.

    Raises
    ------
    DownloadError
        If the download fails, or the checksum of a file does not match.
    ModuleNotFoundError
        If pooch is not installed; ``hbm_jax[download]`` includes it.
    ValueError
        For an unknown name.
    """
    if name not in DOWNLOADS:
        hint = did_you_mean(name, DOWNLOADS)
        raise ValueError(f"Unknown sample {name!r}: expected one of {', '.join(DOWNLOADS)}{hint}.")
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "fetch_distance_moduli: expected the package pooch; found that it is not installed. Install "
            "hbm_jax[download]: pip install 'hbm_jax[download]'.",
            name=error.name,
        ) from error
    entry = DOWNLOADS[name]
    target_folder = Path(folder or os.environ.get(FOLDER) or pooch.os_cache("hbm_jax")) / name
    paths = {}
    for kind, file in (("table", entry.table), ("covariance", entry.covariance)):
        if file is None:
            continue
        filename, digest = file
        digest = (known_hash or {}).get(filename, digest)
        url = entry.url + filename.replace("+", "%2B").replace("=", "%3D")
        paths[kind] = _retrieve(pooch, url, filename, digest, target_folder)
    return paths


def _retrieve(pooch: Any, url: str, filename: str, digest: str | None, folder: Path) -> Path:
    """Return the path of a file in a folder, after downloading it if necessary."""
    target = folder / filename
    try:
        if digest is None and target.exists():
            return target
        pooch.get_logger().setLevel("WARNING")  # otherwise it logs each download and advises to store the checksum
        return Path(pooch.retrieve(url, known_hash=digest and f"sha256:{digest}", fname=filename, path=folder))
    except ValueError as error:  # raised by pooch if the checksum does not match
        raise DownloadError(
            f"{filename}: expected the file with SHA-256 {digest}; found another at {url} ({error}). If the release "
            f"was revised, inspect the file and pass known_hash={{{filename!r}: None}}."
        ) from error
    except Exception as error:  # requests raises many types, without advice for the user
        raise DownloadError(
            f"{filename}: expected to download it from {url}; found an error ({type(error).__name__}: {error}). "
            f"Without a network, put the file at {target}, or set {FOLDER} to the folder that contains "
            f"{folder.name}/{filename}."
        ) from error


def load_distance_moduli(name: str, *, folder: str | os.PathLike | None = None, **options: Any) -> DistanceModuli:
    """Download a published sample and read it.

    Parameters
    ----------
    name : str
        As for `fetch_distance_moduli`.
    folder : path, optional
        As for `fetch_distance_moduli`.
    **options
        Options of `read_distance_moduli`, such as ``z_min`` and ``calibrators``.

    Raises
    ------
    DownloadError, DataError
        As for `fetch_distance_moduli` and `read_distance_moduli`.

    Examples
    --------
    >>> load_distance_moduli("union3")  # doctest: +SKIP
    DistanceModuli(22 objects)
    """
    files = fetch_distance_moduli(name, folder=folder)
    covariance = files.get("covariance")
    return read_distance_moduli(
        files["table"], format=name, **({"covariance": str(covariance)} if covariance else {}) | options
    )
