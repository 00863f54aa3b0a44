"""Check of an installation: versions, devices, precision, known incompatibilities."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from hbm_jax import __version__

PACKAGES = (
    "jax",
    "jaxlib",
    "numpyro",
    "optax",
    "numpy",
    "scipy",
    "astropy",
    "arviz-base",
    "arviz-stats",
    "arviz-plots",
    "matplotlib",
    "jinja2",
)
PLOTS = ("arviz-plots", "matplotlib", "jinja2")


def installed() -> dict[str, str | None]:
    """Return the version of each package that hbm_jax uses, None where it is not installed."""
    versions: dict[str, str | None] = {"hbm_jax": __version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return versions


def known_problems(versions: Mapping[str, str | None], platforms: set[str]) -> list[str]:
    """Return known incompatibilities of package versions and devices.

    Parameters
    ----------
    versions : mapping of str to str or None
        Result of `installed`.
    platforms : set of str
        Platforms of the JAX devices.

    Returns
    -------
    list of str
        One sentence for each problem, with its solution.
    """
    problems = []

    def release(package):
        return tuple(int(part) for part in (versions.get(package) or "0").split(".")[:3] if part.isdigit())

    if "gpu" in platforms and (0, 10, 2) <= release("jaxlib") <= (0, 11, 0):
        problems.append(
            f"jaxlib {versions['jaxlib']} has a very slow float32 scatter-add on GPU; install jaxlib older than 0.10.2 "
            "or newer than 0.11.0."
        )
    if versions.get("arviz-plots") and release("arviz-plots") < (0, 9) and release("matplotlib") >= (3, 11):
        problems.append(
            f"arviz-plots {versions['arviz-plots']} breaks on matplotlib {versions['matplotlib']}; "
            "pip install 'matplotlib<3.11'."
        )
    return problems


def examine() -> tuple[list[str], list[str]]:
    """Return lines that describe the installation, and the problems found."""
    import jax
    import jax.numpy as jnp

    from hbm_jax.inference.compilation.devices import no_devices
    from hbm_jax.registry import BUILT_IN, MODELS

    versions = installed()
    device_problem = no_devices()
    devices = [] if device_problem else jax.devices()
    lines = [f"python        {platform.python_version()} on {platform.system()} {platform.machine()}"]
    lines += [f"{name:<13} {release or 'not installed'}" for name, release in versions.items()]
    lines.append(f"cores         {os.cpu_count()}")
    lines += [f"device {device.id}      {device.platform}, {device.device_kind}" for device in devices]
    lines.append(f"programs      {_cache()}")
    installed_models, broken = MODELS.examine()
    lines.append(f"models        {'; '.join([f'{len(BUILT_IN)} of hbm_jax', *installed_models])}")
    if device_problem:
        return lines, [device_problem, *broken]
    with jax.enable_x64(True):
        double = jnp.zeros(1).dtype == jnp.float64 and abs(float(jnp.sum(jnp.asarray([1.0, 1e-12]))) - 1.0) > 0
    default = "on" if jax.config.read("jax_enable_x64") else "off (sample switches it on for itself)"
    lines.append(f"float64       {'works' if double else 'does not work'}; JAX's default is {default}")
    problems = known_problems(versions, {device.platform for device in devices}) + broken
    if not double:
        problems.append("float64 does not work on this device; posteriors would be computed in float32.")
    absent = [name for name in PLOTS if versions[name] is None]
    if absent:
        lines.append(f"figures       not available: {', '.join(absent)} missing; pip install 'hbm_jax[plots]'")
    from hbm_jax.cosmology import Cosmology, luminosity_distance

    with jax.enable_x64(True):
        distance = float(luminosity_distance(1.0, Cosmology.flat(H0=70.0, Om0=1.0)))
    exact = 2.0 * 299792.458 / 70.0 * 2.0 * (1.0 - 2.0**-0.5)  # Einstein-de Sitter, closed form
    lines.append(f"kernels       relative error of the luminosity distance at z = 1: {abs(distance / exact - 1.0):.1g}")
    if not abs(distance / exact - 1.0) < 1e-12:
        problems.append("the distance kernel is not accurate on this device.")
    return lines, problems


def _cache() -> str:
    """Return a line about the cache of compiled programs that the command line uses."""
    from hbm_jax.inference.compilation.cache import VARIABLE, cache_folder, size

    folder = cache_folder()
    if folder is None:
        return f"compiled each time ({VARIABLE}=off)"
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        return f"compiled each time: {folder} cannot be written; set {VARIABLE} to another folder"
    return f"cached in {folder} ({size(folder) / 1024**2:.0f} MB); {VARIABLE}=off disables the cache"
