"""Best fits of hbm_jax, elisa and jaxspec to the same files: an absorbed power law in one CCD spectrum.

Two spectra: one that is made here, of some 5000 counts with an idealised CCD response, and that of 3C 273 by Chandra in
the shared data (HBM_JAX_TEST_DATA), grouped as in its file; each with and without a background. Each package runs in
its own Python, so that their versions of JAX do not have to agree:

    python benchmarks/beside_elisa_jaxspec.py --elisa ELISA_ENV/bin/python --jaxspec JAXSPEC_ENV/bin/python

elisa 0.1.11 needs an older JAX, such as 0.4.30. Differences are in units of the standard deviation of hbm_jax. "tbabs"
are the cross sections of each package; "table" is one table of cross sections in all of them, that of elisa (tbabs,
wilm), interpolated linearly in the logarithms. "exact" and "edges" are maxima of the same Poisson likelihood in plain
NumPy: with photons that are integrated in each energy bin; and with the photons of the power law in a bin times the
mean of the transmissions at its edges, the rule of elisa.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BAND = (0.3, 10.0)
TRUTH = {"photon_index": 1.8, "log10_amplitude": -2.9, "nh": 0.2}
EXPOSURE, BACKGROUND = 20_000.0, (0.02, 8.0)  # [s]; background rate in the source region [1/s], ratio of the regions
BANDS = {"made": BAND, "3c273": (0.56, 6.58)}  # of 3C 273: at the edges of groups, which hbm_jax would divide
CASES = {
    f"{name}: {expression}, {statistic}": (name, statistic == "W", model)
    for name in BANDS
    for expression, model in (("po", "po"), ("tbabs * po", "tbabs"), ("table * po", "table"))
    for statistic in "CW"
}
NAMES = ("photon_index", "log10_amplitude", "nh")


def write_files(folder: Path) -> None:
    """Write the spectra, their background and the response; energy bins are 2.5 eV wide."""
    from hbm_jax.data.drawn_spectra import channel_rates, ungrouped
    from hbm_jax.models import SpectralFit
    from hbm_jax.spectra import Response, write_arf, write_pha, write_rmf, xrt_like_arf, xrt_like_rmf

    rmf = xrt_like_rmf(4760)
    arf = xrt_like_arf(rmf)
    response, rng = Response.of(rmf, arf), np.random.default_rng(39)
    spectrum = SpectralFit("powerlaw * tbabs").spectrum
    rate = channel_rates(spectrum, response, {key: [value] for key, value in TRUTH.items()})[0]
    per_channel, ratio = BACKGROUND[0] / len(rate), BACKGROUND[1]
    counts = rng.poisson(rate * EXPOSURE)
    in_source, in_background = (rng.poisson(per_channel * EXPOSURE * scale, len(rate)) for scale in (1.0, ratio))
    background = ungrouped("background", response.channels, EXPOSURE, in_background, backscal=ratio)
    write_rmf(folder / "a.rmf", rmf)
    write_arf(folder / "a.arf", arf)
    files = {"rmf": "a.rmf", "arf": "a.arf", "telescope": "MADE", "instrument": "CCD"}
    write_pha(folder / "background.pha", background, telescope="MADE", instrument="CCD")
    write_pha(folder / "made_C.pha", ungrouped("none", response.channels, EXPOSURE, counts), **files)
    with_background = ungrouped("with", response.channels, EXPOSURE, counts + in_source)
    write_pha(folder / "made_W.pha", with_background, background="background.pha", **files)
    copy_chandra(folder)


def copy_chandra(folder: Path) -> None:
    """Copy the spectrum of 3C 273 with and without the name of its background; elisa needs POISSERR for counts."""
    from astropy.io import fits

    shared = Path(os.environ["HBM_JAX_TEST_DATA"]) / "xray" / "chandra_3c273"
    for name in ("3c273.rmf", "3c273.arf"):
        shutil.copyfile(shared / name, folder / name)
    copies = {"3c273_bg.pha": ("3c273_bg.pi", "NONE"), "3c273_C.pha": ("3c273.pi", "NONE")}
    for copy, (source, background) in (copies | {"3c273_W.pha": ("3c273.pi", "3c273_bg.pha")}).items():
        with fits.open(shared / source) as hdus:
            hdus["SPECTRUM"].header["BACKFILE"], hdus["SPECTRUM"].header["POISSERR"] = background, True
            hdus.writeto(folder / copy)


def file_of(case: str) -> str:
    """Return the PHA file of a case."""
    name, has_background, _ = CASES[case]
    return f"{name}_{'W' if has_background else 'C'}.pha"


def responses_of(folder: Path, case: str) -> tuple[str, str]:
    """Return the files of redistribution and effective area of a case."""
    name = "a" if CASES[case][0] == "made" else "3c273"
    return str(folder / f"{name}.rmf"), str(folder / f"{name}.arf")


def stored(folder: Path, package: str) -> dict:
    """Return the results of a package in the folder."""
    file = folder / f"{package}.json"
    return json.loads(file.read_text())["results"] if file.is_file() else {}


def versions(*names: str) -> dict[str, str]:
    """Return the installed versions of packages."""
    return {name: importlib.metadata.version(name) for name in names}


def fit_with_hbm_jax(folder: Path) -> dict:
    """Return best fits, standard deviations and statistics of all cases."""
    import jax.numpy as jnp

    import hbm_jax as hbm
    from hbm_jax.spectra import Parameter, component

    table = np.load(folder / "table.npz")

    @component({"nh": Parameter("1e22 cm^-2", "Uniform(0, 10)", "column")}, kind="multiplicative")
    def table_absorption(energy, nh):
        return jnp.exp(-nh * cross_section(jnp, energy, table))

    # The kinks of the table, at its edges, are edges of the quadrature.
    spacing = np.maximum(np.diff(np.log(table["energy"])), 1e-12)  # the table has two values at an edge
    slope = np.diff(np.log(table["sigma"])) / spacing
    is_kink = np.abs(np.diff(slope)) * np.minimum(spacing[1:], spacing[:-1]) > 1e-3
    kinks = np.unique(table["energy"][1:-1][is_kink])
    table_absorption.smooth = True
    table_absorption.discontinuities = lambda self, low, high: kinks[(kinks > low) & (kinks < high)]
    expressions = {"po": "powerlaw", "tbabs": "powerlaw * tbabs", "table": "powerlaw * table_absorption()"}
    results = stored(folder, "hbm_jax")
    for case, (name, has_background, model) in CASES.items():
        if case in results:
            continue
        grouping = "none" if name == "made" else "file"
        stack = hbm.data.read_grouped_spectra(folder / file_of(case), energies=BANDS[name], grouping=grouping)
        statistic = "wstat" if has_background else "cstat"
        fit = hbm.models.SpectralFit(expressions[model], statistic=statistic)
        start = time.perf_counter()
        best = hbm.best_fit(fit, stack, num_simulations=0)
        table_of_best = best.likelihood.table
        results[case] = {
            "value": {name: float(table_of_best["value"][name]) for name in table_of_best["value"].index},
            "std": {name: float(table_of_best["std"][name]) for name in table_of_best["value"].index},
            "statistic": best.deviance.total, "num": best.deviance.degrees_of_freedom + len(table_of_best),
            "seconds": time.perf_counter() - start,
        }  # fmt: skip
        if model == "table" and not has_background:
            results[case] |= {rule: plain_maximum(stack, table, results[case], rule) for rule in ("exact", "edges")}
    return {"versions": versions("hbm_jax", "jax", "numpyro"), "results": results}


def cross_section(numpy, energy, table):
    """Return the cross section [1e-22 cm^2], interpolated linearly in the logarithms, by NumPy or jax.numpy."""
    return numpy.exp(numpy.interp(numpy.log(energy), np.log(table["energy"]), np.log(table["sigma"])))


def plain_maximum(stack, table, best: dict, rule: str) -> list[float]:
    """Return the maximum of the Poisson likelihood in plain NumPy, of an absorbed power law."""
    edges, matrix = stack.grouped_response(0)
    counts = np.asarray(stack.counts)[0, : matrix.shape[1]]
    inner = np.linspace(edges[:-1], edges[1:], 41) if rule == "exact" else np.array([edges[:-1], edges[1:]])
    sigma = cross_section(np, 0.5 * (inner[1:] + inner[:-1]) if rule == "exact" else inner, table)
    limits = inner if rule == "exact" else np.array([edges[:-1], edges[1:]])

    best_values, stds = (np.array(list(best[key].values())) for key in ("value", "std"))

    def deviance(scaled):
        index, log10_amplitude, nh = best_values + scaled * stds
        photons = 10.0**log10_amplitude * np.diff(limits ** (1.0 - index) / (1.0 - index), axis=0)
        transmission = np.exp(-nh * sigma)
        in_bins = np.sum(photons * (transmission if rule == "exact" else transmission.mean(axis=0)), axis=0)
        expected = in_bins @ matrix
        return 2.0 * np.sum(expected - counts * np.log(expected))

    assert list(best["value"]) == ["photon_index", "log10_amplitude", "nh"]
    # Newton's method with central differences, in units of the standard deviations.
    x, step = np.zeros(3), 0.02
    for _ in range(6):
        unit = step * np.eye(3)
        gradient = np.array([deviance(x + e) - deviance(x - e) for e in unit]) / (2.0 * step)
        hessian = np.array([
            [deviance(x + a + b) - deviance(x + a - b) - deviance(x - a + b) + deviance(x - a - b) for a in unit]
            for b in unit
        ]) / (4.0 * step**2)  # fmt: skip
        x = x - np.linalg.solve(hessian, gradient)
    return x.tolist()


def fit_with_elisa(folder: Path) -> dict:
    """Return best fits and statistics of all cases; the table of cross sections is stored for the other packages."""
    import h5py
    from elisa import Data, MaxLikeFit
    from elisa.models import PowerLaw, TBAbs, mul

    with h5py.File(Path(mul.__file__).parent / "tables" / "xsect.hdf5") as tables:
        np.savez(folder / "table.npz", energy=tables["energy"][()], sigma=tables["tbabs/vern/wilm"][()])
    results = stored(folder, "elisa")
    for case, (name, has_background, model) in CASES.items():
        if case in results:
            continue
        files = dict(zip(("respfile", "ancrfile"), responses_of(folder, case), strict=True))
        if has_background:
            files["backfile"] = str(folder / ("background.pha" if name == "made" else "3c273_bg.pha"))
        data = Data([BANDS[name]], str(folder / file_of(case)), name="ccd", spec_poisson=True, **files)
        start = time.perf_counter()
        spectrum = PowerLaw() if model == "po" else TBAbs(abund="wilm") * PowerLaw()
        start_values = {"PowerLaw.alpha": TRUTH["photon_index"], "PowerLaw.K": 10 ** (-2.9 if name == "made" else -3.7)}
        if model != "po":  # from its default start, the likelihood became NaN
            start_values["TBAbs.nH"] = TRUTH["nh"]
        fit = MaxLikeFit(data, spectrum, "wstat" if has_background else "cstat")
        best = fit.mle(init=start_values)
        seconds = time.perf_counter() - start
        names = [key.rpartition(".")[2] for key in fit._helper.params_names["all"]]
        found = {key.rpartition(".")[2]: value[0] for key, value in best.mle.items()}
        polished = dict(zip(names, np.asarray(fit._helper.get_mle(newton(fit, best))[0]).tolist(), strict=True))
        results[case] = {
            "value": in_our_names(found), "newton": in_our_names(polished), "statistic": best.deviance["total"],
            "num": best.ndata["total"], "seconds": seconds,
        }  # fmt: skip
    return {"versions": versions("elisa-lib", "jax", "numpyro"), "results": results}


def newton(fit, best):
    """Return the maximum of elisa's likelihood by three of Newton's steps, from its best fit."""
    import jax

    gradient, x = jax.jit(jax.grad(fit._helper.deviance_total)), np.array(best._mle_unconstr)
    steps = 1e-4 * np.diag(np.abs(x))
    for _ in range(3):
        hessian = np.array([(gradient(x + step) - gradient(x - step)) / (2.0 * step.sum()) for step in steps])
        x = x - np.linalg.solve(hessian, gradient(x))
    return x


def in_our_names(found: dict) -> dict:
    """Return parameters of elisa under the names of hbm_jax."""
    values = {"photon_index": float(found["alpha"]), "log10_amplitude": float(np.log10(found["K"]))}
    return values | ({"nh": float(found["nH"])} if "nH" in found else {})


def fit_with_jaxspec(folder: Path) -> dict:
    """Return maxima of the Poisson likelihood of jaxspec, found with SciPy, of the cases without a background."""
    import jax

    jax.config.update("jax_enable_x64", True)
    import flax.nnx as nnx
    import jax.numpy as jnp
    import numpyro.distributions as dist
    from jaxspec.data import ObsConfiguration
    from jaxspec.fit import BayesianModel
    from jaxspec.model.abc import MultiplicativeComponent
    from jaxspec.model.additive import Powerlaw
    from scipy import optimize

    table = np.load(folder / "table.npz")

    class TableAbsorption(MultiplicativeComponent):
        """Transmission of the common table of cross sections."""

        def __init__(self):
            self.nh = nnx.Param(1.0)

        def factor(self, energy):
            return jnp.exp(-self.nh * cross_section(jnp, energy, table))

    # Components by model, the maximum found with SciPy, and values in the order of NAMES.
    results = stored(folder, "jaxspec")
    for case, (name, has_background, model) in CASES.items():
        # Its table for tbabs is downloaded; W is not among its statistics.
        if case in results or has_background or model == "tbabs":
            continue
        rmf, arf = responses_of(folder, case)
        observation = ObsConfiguration.from_pha_file(
            str(folder / file_of(case)), rmf_path=rmf, arf_path=arf, low_energy=BANDS[name][0],
            high_energy=BANDS[name][1] + 1e-6,
        )  # fmt: skip
        start = time.perf_counter()
        spectrum = Powerlaw() if model == "po" else TableAbsorption() * Powerlaw()
        prior = {"alpha": dist.Uniform(0, 5), "norm": dist.LogUniform(1e-6, 1)}
        if model != "po":
            prior["nh"] = dist.Uniform(0, 10)
        components = {"alpha": "powerlaw_1", "norm": "powerlaw_1", "nh": "tableabsorption_1"}
        paths = {name: f"spectrum.{components[name]}.{name}" for name in prior}
        bayesian = BayesianModel(spectrum, {paths[name]: prior[name] for name in prior}, observation)

        def minus_log_likelihood(x, bayesian=bayesian, paths=paths):
            values = dict(zip(paths.values(), [x[0], 10.0 ** x[1], *x[2:]], strict=True))
            return -bayesian.log_likelihood(values)

        value_and_gradient = jax.jit(jax.value_and_grad(minus_log_likelihood))
        found = optimize.minimize(
            lambda x, function=value_and_gradient: [np.asarray(part) for part in function(x)],
            [1.8, -2.9 if name == "made" else -3.7, 0.1][: len(prior)], jac=True, method="BFGS", options={"gtol": 1e-5},
        )  # fmt: skip
        results[case] = {
            "value": dict(zip(NAMES, found.x.tolist(), strict=False)),
            "num": int(observation.folded_counts.size), "seconds": time.perf_counter() - start,
        }  # fmt: skip
    return {"versions": versions("jaxspec", "jax", "numpyro"), "results": results}


FITS = {"hbm_jax": fit_with_hbm_jax, "elisa": fit_with_elisa, "jaxspec": fit_with_jaxspec}


def report(found: dict[str, dict]) -> str:
    """Return the table of differences."""
    ours = found["hbm_jax"]["results"]
    lines = ["; ".join(" ".join(pair) for pair in each["versions"].items()) for each in found.values()]
    lines.append(f"{'case':22} {'parameter':16} {'hbm_jax':>10} {'std':>9}   difference / std")
    for case, best in ours.items():
        others = {name: each["results"][case] for name, each in found.items() if case in each["results"]}
        numbers = {name: other["num"] for name, other in others.items()}
        for name, value in best["value"].items():
            std = best["std"][name]
            differences = (
                f"{key if kind == 'value' else key + ' by Newton'} {(other[kind][name] - value) / std:+.1e}"
                for key, other in others.items()
                for kind in ("value", "newton")
                if key != "hbm_jax" and kind in other
            )
            rules = (f"{rule} {best[rule][NAMES.index(name)]:+.1e}" for rule in ("exact", "edges") if rule in best)
            lines.append(f"{case:22} {name:16} {value:10.6f} {std:9.6f}   {', '.join([*differences, *rules])}")
        statistics = (f"{key} {other['statistic']:.4f}" for key, other in others.items() if "statistic" in other)
        lines.append(f"{'':22} statistic: {', '.join(statistics)}; channels {numbers}")
    seconds = []
    for key, each in found.items():
        times = [f"{result['seconds']:.2f}" for result in each["results"].values()]
        seconds.append(f"{key} {', '.join(times)}")
    lines.append(f"wall seconds of the fits, compilation included, in order: {'; '.join(seconds)}")
    return "\n".join(lines)


def main() -> None:
    """Write the files, fit them with each package in its own Python, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elisa", help="Python in which elisa is installed")
    parser.add_argument("--jaxspec", help="Python in which jaxspec is installed")
    parser.add_argument("--folder", help="existing folder that keeps files and results; cases with results are not run")
    parser.add_argument("--fit", nargs=2, metavar=("PACKAGE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        package, folder = options.fit
        result = FITS[package](Path(folder))
        (Path(folder) / f"{package}.json").write_text(json.dumps(result))
        return
    pythons = {"elisa": options.elisa, "hbm_jax": sys.executable, "jaxspec": options.jaxspec}  # elisa stores the table
    with contextlib.ExitStack() as stack:
        name = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
        if not (Path(name) / "a.rmf").is_file():
            write_files(Path(name))
        for package, python in pythons.items():
            if python is not None:
                subprocess.run([python, __file__, "--fit", package, name], check=True, stdout=subprocess.DEVNULL)
        order = [package for package in FITS if (Path(name) / f"{package}.json").is_file()]
        print(report({package: json.loads((Path(name) / f"{package}.json").read_text()) for package in order}))


if __name__ == "__main__":
    main()
