"""A population of 5 X-ray afterglows with host columns and a global WHIM, from counts, without background.

Of each source are given what is constant: grouped response times exposure, cross sections and the optical depth of the
WHIM in each bin of energy, this at 61 temperatures between which the others interpolate linearly.
"""

import dataclasses

import numpy as np

TITLE = "5 X-ray afterglows with WHIM, {num_energies} energies, from counts"
SCALARS = (
    "photon_index_mean", "photon_index_std", "log10_flux_mean", "log10_flux_std", "log10_nh_mean", "log10_nh_std",
    "log10_n0", "log10_T",
)  # fmt: skip
NAMES = SCALARS
SHARE, PATIENCE = 0.5, 4  # of the draws and the seconds that are usual
SIZES = {"num_energies": 2400}
QUICK_SIZES = {"num_energies": 300}
FORMS = ("centred", "non-centred")
SHIFTS: dict[str, float] = {}
PROGRAM = {"centred": "afterglow_expert.stan", "non-centred": "afterglow_noncentred.stan"}
OURS = {"default": None}
NUM, BAND = 5, (0.3, 10.0)
TEMPERATURES = np.linspace(4.5, 7.5, 61)
TYPICAL = dict(zip(SCALARS, (2.0, 0.2, -11.4, 0.4, -0.3, 0.5, -6.9, 6.0), strict=True))
PRIORS = {
    "photon_index_mean": ("Normal", 2, 0.5), "photon_index_std": ("HalfNormal", 0.3),
    "log10_flux_mean": ("Normal", -11.5, 0.75), "log10_flux_std": ("HalfNormal", 0.5),
    "log10_nh_mean": ("Normal", -0.5, 0.75), "log10_nh_std": ("HalfNormal", 0.5), "log10_n0": ("Normal", -7, 0.5),
    "log10_T": ("Uniform", 4.5, 7.5),
}  # fmt: skip
LATENTS = ("photon_index", "log10_flux", "log10_nh")


def _sample(num_energies):
    from hbm_jax.data import Afterglows
    from hbm_jax.data.xray.simulation import AfterglowPopulation
    from hbm_jax.spectra.folding.grouping import group, noticed
    from hbm_jax.spectra.folding.idealised import xrt_like_arf, xrt_like_rmf
    from hbm_jax.spectra.folding.response import Response
    from hbm_jax.spectra.stack import SpectrumStack

    rmf = xrt_like_rmf(num_energies)
    population = AfterglowPopulation(log10_n0=-6.5, log10_nh=(0.4, 0.4), log10_flux=(-11.2, 0.4), exposure=20000.0)
    drawn = population.draw(NUM, seed=5, response=Response.of(rmf, xrt_like_arf(rmf)))
    spectra = [dataclasses.replace(s, background=None) for s in drawn.spectra]
    masks = [noticed(s, BAND) for s in spectra]
    grouped = [group(s, "optimal", noticed=m) for s, m in zip(spectra, masks, strict=True)]
    data = Afterglows.from_spectra(SpectrumStack.of(grouped, masks), z=drawn.columns["z"], nh_mw=drawn.columns["nh_mw"])
    return data, {name: np.asarray(drawn.truth[name]) for name in LATENTS}


def _model():
    import hbm_jax as hbm

    return hbm.models.Afterglow(whim=True, statistic="cstat")


def problem(num_energies):
    """Everything constant, as arrays."""
    import jax

    from hbm_jax import constants
    from hbm_jax.spectra.model.absorbers import bin_average, neutral_integral

    with jax.enable_x64(True):
        data, truth = _sample(num_energies)
        stack, model = data.spectra, _model()
        edges = np.asarray(stack.responses[0].energy)
        low, high = np.searchsorted(edges, (0.1, 12.0))  # bins outside give no counts from 0.3 to 10 keV
        edges = edges[low : high + 1]
        num_groups, middle = np.shape(stack.counts)[1], np.sqrt(edges[1:] * edges[:-1])
        z = np.asarray(data.z)
        medium = next(part for part in model.medium.spectrum(z, model.band).parts if "log10_T" in part.parameters)
        table = medium._table(np.repeat(middle[None], NUM, axis=0), z)
        whim = [np.asarray(table(1.0, T)) for T in np.clip(TEMPERATURES, 4.5 + 1e-9, 7.5 - 1e-9)]
        response = stack.responses[0].matrix.toarray()[low:high].T
        group_of = np.stack([np.asarray(g) + 1 for g in stack.grouping])
        grouped = np.zeros((NUM, num_groups, len(middle)))
        for row in range(NUM):
            used = np.flatnonzero(group_of[row] > 0)
            np.add.at(grouped[row], group_of[row, used] - 1, response[used] * stack.exposure[row])
        integral = neutral_integral(model.abundances)
        galactic = np.repeat(bin_average(integral, np.log(edges))[None], NUM, axis=0)
        host = np.stack([bin_average(integral, np.log(edges * (1 + one))) for one in z])
    half = 0.5 * np.diff(np.log(edges))
    counts = np.asarray(stack.counts).astype(int)
    return {
        "data": data, "truth": truth, "edge": edges, "middle": np.log(middle), "half": half, "counts": counts,
        "num_groups": group_of.max(axis=1), "nh_mw": np.asarray(data.nh_mw), "galactic": galactic, "host": host,
        "grouped": grouped, "folded": grouped * 2 * half, "whim": np.stack(whim, axis=-1), "band": np.array(model.band),
        "erg_per_keV": constants.electron_volt * 1e10, "used": np.arange(num_groups) < group_of.max(axis=1)[:, None],
    }  # fmt: skip


def ours(given, _):
    """Model and data."""
    return _model(), given["data"]


def _photons(given, p, latents, xp, whim):
    """Return the photons of every source in each bin of energy, (N, E), less their width in ln E."""
    index, flux, nh = (x[:, None] for x in latents)
    low, high = given["band"]
    b = 2 - index
    # Without trouble at an index of 2: sinh(y) / y by its series.
    y = 0.5 * b * np.log(high / low)
    series = 1 + y**2 / 6 * (1 + y**2 / 20 * (1 + y**2 / 42 * (1 + y**2 / 72)))
    log_band = 0.5 * b * np.log(high * low) + xp.log(series) + np.log(np.log(high / low) * given["erg_per_keV"])
    log_photons = np.log(10) * flux - log_band + (1 - index) * given["middle"] + ((1 - index) * given["half"]) ** 2 / 6
    depth = given["nh_mw"][:, None] * given["galactic"] + xp.exp(np.log(10) * nh) * given["host"] + whim
    return xp.exp(log_photons - depth)


def numpyro_program(given, form):
    """Return the model as an expert in NumPyro would write it: one batched product, constants computed beforehand."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    step = TEMPERATURES[1] - TEMPERATURES[0]
    by_temperature = np.moveaxis(given["whim"], -1, 0)

    def latent(name, p):
        mean, std = p[f"{name}_mean"], p[f"{name}_std"]
        if form == "centred":
            return numpyro.sample(name, dist.Normal(mean, std).expand([NUM]))
        return mean + std * numpyro.sample(f"{name}_free", dist.Normal().expand([NUM]))

    def program():
        p = {name: numpyro.sample(name, getattr(dist, kind)(*a)) for name, (kind, *a) in PRIORS.items()}
        latents = [latent(name, p) for name in LATENTS]
        place = (p["log10_T"] - TEMPERATURES[0]) / step
        cell = jnp.clip(place.astype(int), 0, len(TEMPERATURES) - 2)
        low, high = jnp.asarray(by_temperature)[cell], jnp.asarray(by_temperature)[cell + 1]
        whim = 10 ** p["log10_n0"] * (low + (place - cell) * (high - low))
        photons = _photons(given, p, latents, jnp, whim)
        expected = jnp.einsum("nge,ne->ng", given["folded"], photons)
        counts = dist.Poisson(jnp.where(given["used"], expected, 1.0)).log_prob(given["counts"])
        numpyro.factor("counts", jnp.where(given["used"], counts, 0.0).sum())

    return program


def pymc_model(given, form):
    """Write the same in PyMC."""
    import pymc as pm
    import pytensor.tensor as pt

    step = TEMPERATURES[1] - TEMPERATURES[0]
    by_temperature = pt.as_tensor(np.ascontiguousarray(np.moveaxis(given["whim"], -1, 0)))
    used = np.flatnonzero(given["used"].ravel())

    with pm.Model() as model:
        p = {name: getattr(pm, kind)(name, *a) for name, (kind, *a) in PRIORS.items()}

        def latent(name):
            mean, std = p[f"{name}_mean"], p[f"{name}_std"]
            if form == "centred":
                return pm.Normal(name, mean, std, shape=NUM)
            return mean + std * pm.Normal(f"{name}_free", 0, 1, shape=NUM)

        latents = [latent(name) for name in LATENTS]
        place = (p["log10_T"] - TEMPERATURES[0]) / step
        cell = pt.clip(pt.cast(pt.floor(place), "int64"), 0, len(TEMPERATURES) - 2)
        low, high = by_temperature[cell], by_temperature[cell + 1]
        whim = 10 ** p["log10_n0"] * (low + (place - cell) * (high - low))
        photons = _photons(given, p, latents, pt, whim)
        expected = pt.concatenate([pt.dot(given["folded"][n], photons[n]) for n in range(NUM)])
        pm.Poisson("counts", expected[used], observed=given["counts"].ravel()[used])
    return model


def stan_data(given, form):
    """Return what the Stan programs read."""
    names = ("edge", "grouped", "num_groups", "counts", "nh_mw", "galactic", "host", "whim", "erg_per_keV", "band")
    return {name: given[name] for name in names} | {
        "N": NUM, "E": len(given["middle"]), "G": given["counts"].shape[1], "T": len(TEMPERATURES),
        "low_T": TEMPERATURES[0], "step_T": TEMPERATURES[1] - TEMPERATURES[0],
    }  # fmt: skip


def stan_start(given, form, rng):
    """Return the starting point of a chain of Stan, near the truth."""
    start = {name: float(value + 0.02 * rng.normal()) for name, value in TYPICAL.items()}
    for name in LATENTS:
        value = given["truth"][name] + 0.02 * rng.normal(size=NUM)
        if form == "centred":
            start[name] = value.tolist()
        else:
            start[f"{name}_free"] = ((value - start[f"{name}_mean"]) / start[f"{name}_std"]).tolist()
    return start
