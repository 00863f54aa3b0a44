"""The normal hierarchy: 1000 groups measured once, a half of them well, a quarter badly, a quarter in between."""

import numpy as np

TITLE = "normal hierarchy, 1000 groups with known errors"
NAMES = ("mu", "tau")
SHARE, PATIENCE = 1, 1  # of the draws and the seconds that are usual
SIZES: dict[str, int] = {}
QUICK_SIZES: dict[str, int] = {}
FORMS = ("centred", "non-centred")
SHIFTS: dict[str, float] = {}
PROGRAM = {"centred": "normal.stan", "non-centred": "normal.stan"}
OURS = {"marginal": "marginal", "mixed": "mixed"}


def problem():
    """Simulate values and their errors."""
    rng = np.random.default_rng(3)
    sigma = np.repeat([0.2, 0.2, 1.0, 5.0], 250)
    return {"y": rng.normal(4.0, 1.0, 1000) + sigma * rng.normal(size=1000), "sigma": sigma}


def ours(given, latents):
    """Model and data."""
    import hbm_jax as hbm

    columns = {"y": given["y"], "sigma_y": given["sigma"], "group": [f"g{i}" for i in range(len(given["y"]))]}
    data = hbm.data.ValuesInGroups.from_columns(columns)
    return hbm.models.Normal(latents=latents, priors={"mu": "Normal(0, 5)", "tau": "HalfNormal(5)"}), data


def numpyro_program(given, form):
    """Return the model as a careful user of NumPyro would write it."""
    import numpyro
    from numpyro import distributions as dist

    def program():
        mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfNormal(5))
        if form == "centred":
            theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(given["y"])]))
        else:
            theta = mu + tau * numpyro.sample("free", dist.Normal().expand([len(given["y"])]))
        numpyro.sample("y", dist.Normal(theta, given["sigma"]), obs=given["y"])

    return program


def pymc_model(given, form):
    """Write the same in PyMC."""
    import pymc as pm

    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfNormal("tau", 5)
        num = len(given["y"])
        free = pm.Normal("theta", mu, tau, shape=num) if form == "centred" else pm.Normal("free", 0, 1, shape=num)
        pm.Normal("y", free if form == "centred" else mu + tau * free, given["sigma"], observed=given["y"])
    return model


def stan_data(given, form):
    """Return what the Stan program reads."""
    return {"J": len(given["y"]), "y": given["y"], "sigma": given["sigma"], "centred": int(form == "centred")}


def stan_start(given, form, rng):
    """Return the starting point of a chain of Stan."""
    free = np.full(len(given["y"]), 4.0) if form == "centred" else np.zeros(len(given["y"]))
    return {"mu": float(4 + 0.1 * rng.normal()), "tau": 1.0, "free": (free + 0.1 * rng.normal(size=free.size)).tolist()}
