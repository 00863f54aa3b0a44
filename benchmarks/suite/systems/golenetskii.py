"""The rest-frame Golenetskii relation: 30 simulated bursts of 15 intervals, catalogue values with correlated errors."""

import numpy as np

TITLE = "Golenetskii relation, 30 bursts of 15 intervals"
NAMES = (
    "gamma_mean", "gamma_std", "log10_N_mean", "log10_N_std", "log10_E_peak_mean", "log10_E_peak_std",
    "log10_E_peak_scatter", "intrinsic_scatter",
)  # fmt: skip
SHARE, PATIENCE = 1, 1  # of the draws and the seconds that are usual
SIZES: dict[str, int] = {}
QUICK_SIZES: dict[str, int] = {}
FORMS = ("centred", "non-centred")
SHIFTS = {"log10_N_mean": 52.0}  # the others have it less 52
PROGRAM = {"centred": "golenetskii.stan", "non-centred": "golenetskii.stan"}
OURS = {"marginal": "marginal", "sampled": "sampled"}
TYPICAL = dict(zip(NAMES, (1.5, 0.2, 0.0, 0.3, 2.6, 0.3, 0.25, 0.1), strict=True))
# Mean and scale of the normal prior, or scale alone of the half-normal one.
PRIORS = dict(zip(NAMES, ((1.5, 0.5), (0.5,), (0.0, 1.0), (1.0,), (2.6, 0.5), (0.5,), (0.5,), (0.3,)), strict=True))


def problem(num=30, seed=6):
    """Measured values, moved to the frames of the bursts."""
    import jax

    import hbm_jax as hbm
    from hbm_jax.cosmology import Cosmology
    from hbm_jax.spectra.model.energetics import log10_sphere_area

    data = hbm.data.BurstPopulation(num_intervals=15, gamma=(1.5, 0.25)).draw(num, seed=seed).data
    with jax.enable_x64(True):
        sphere = np.asarray(log10_sphere_area(data.z, Cosmology.flat(H0=70.0, Om0=0.3)))
    used = np.asarray(data.used)
    of = np.repeat(np.arange(len(data)), used.sum(axis=1))
    xx, xy, yy = data.errors[used].T
    return {
        "data": data, "of": of, "x": data.log10_E_peak[used] + np.log10(1 + data.z[of]) - 2.0,
        "y": data.log10_flux[used] + sphere[of] - 52.0, "xx": xx, "xy": xy, "yy": yy,
    }  # fmt: skip


def ours(given, latents):
    """Model and data."""
    import hbm_jax as hbm

    return hbm.models.Golenetskii(latents=latents), given["data"]


def _likelihood(given, p, latent, normal):
    """Everything below the hyperpriors, in the words of NumPyro or PyMC.

    ``latent(name, mean, std, size)`` is a latent in the form asked for; ``normal(name, mean, std, observed)`` observes.
    """
    of, num = given["of"], int(given["of"].max()) + 1
    gamma = latent("gamma", p["gamma_mean"], p["gamma_std"], num)
    line = latent("line", p["log10_N_mean"], p["log10_N_std"], num)
    middle = latent("middle", p["log10_E_peak_mean"] - 2.0, p["log10_E_peak_std"], num)
    x = latent("x", middle[of], p["log10_E_peak_scatter"], len(of))
    y = latent("y", line[of] + gamma[of] * x, p["intrinsic_scatter"], len(of))
    slope = given["xy"] / given["xx"]
    normal("x_obs", x, np.sqrt(given["xx"]), given["x"])
    normal("y_obs", y + slope * (given["x"] - x), np.sqrt(given["yy"] - given["xy"] * slope), given["y"])


def numpyro_program(given, form):
    """Return the model as a careful user of NumPyro would write it: peak energies and fluxes sampled, vectorised."""
    import numpyro
    from numpyro import distributions as dist

    def latent(name, mean, std, size):
        if form == "centred":
            return numpyro.sample(name, dist.Normal(mean, std).expand([size]))
        return mean + std * numpyro.sample(f"{name}_free", dist.Normal().expand([size]))

    def normal(name, mean, std, observed):
        numpyro.sample(name, dist.Normal(mean, std), obs=observed)

    def program():
        p = {n: numpyro.sample(n, (dist.Normal if len(v) == 2 else dist.HalfNormal)(*v)) for n, v in PRIORS.items()}
        _likelihood(given, p, latent, normal)

    return program


def pymc_model(given, form):
    """Write the same in PyMC."""
    import pymc as pm

    def latent(name, mean, std, size):
        if form == "centred":
            return pm.Normal(name, mean, std, shape=size)
        return mean + std * pm.Normal(f"{name}_free", 0, 1, shape=size)

    def normal(name, mean, std, observed):
        pm.Normal(name, mean, std, observed=observed)

    with pm.Model() as model:
        p = {n: (pm.Normal if len(v) == 2 else pm.HalfNormal)(n, *v) for n, v in PRIORS.items()}
        _likelihood(given, p, latent, normal)
    return model


def stan_data(given, form):
    """Return what the Stan program reads."""
    return {
        "B": int(given["of"].max()) + 1, "n": len(given["of"]), "burst": (given["of"] + 1).tolist(),
        "x_obs": given["x"], "y_obs": given["y"], "var_x": given["xx"], "cov_xy": given["xy"], "var_y": given["yy"],
        "centred_peaks": int(form == "centred"), "centred_bursts": int(form == "centred"), "sampled_fluxes": 1,
    }  # fmt: skip


def stan_start(given, form, rng):
    """Return the starting point of a chain of Stan."""
    start = {k: float(v * (1 + 0.05 * rng.normal())) for k, v in TYPICAL.items()}
    num, centred = int(given["of"].max()) + 1, form == "centred"
    where = {"gamma_free": 1.5, "line_free": 0.0, "middle_free": 0.6} if centred else {}
    for name in ("gamma_free", "line_free", "middle_free"):
        start[name] = (where.get(name, 0.0) + 0.1 * rng.normal(size=num)).tolist()
    for name in ("x", "y"):
        start[f"{name}_free"] = (given[name] if centred else 0.1 * rng.normal(size=len(given["of"]))).tolist()
    return start
