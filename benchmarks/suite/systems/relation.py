"""L = alpha M + beta in 50 groups of 20 points, errors in both variables.

The others have the true x and the lines of the groups as parameters and add the scatter of y to its error.
"""

import re

import numpy as np

TITLE = "linear relation, 50 groups of 20 points, errors in both"
PRIORS = {
    "alpha_mean": "Normal(0, 3)", "alpha_std": "HalfNormal(1.5)", "beta_mean": "Normal(0, 3)",
    "beta_std": "HalfNormal(1.5)", "intrinsic_scatter": "HalfNormal(1)", "x_mean": "Normal(0, 2)",
    "x_std": "HalfNormal(2)",
}  # fmt: skip
NAMES = tuple(PRIORS)
TYPICAL = dict(zip(NAMES, (1.4, 0.3, 0.4, 0.5, 0.2, 0.1, 1.0), strict=True))
SHARE, PATIENCE = 1, 1  # of the draws and the seconds that are usual
SIZES: dict[str, int] = {}
QUICK_SIZES: dict[str, int] = {}
FORMS = ("centred", "non-centred")
SHIFTS: dict[str, float] = {}
PROGRAM = {"centred": "relation.stan", "non-centred": "relation.stan"}


def problem():
    """Simulate points, as columns, and the group of each."""
    rng = np.random.default_rng(1)
    of = np.repeat(np.arange(50), 20)
    alpha, beta = rng.normal(1.5, 0.3, 50), rng.normal(0.5, 0.5, 50)
    x = rng.normal(0.2, 1.0, len(of))
    y = alpha[of] * x + beta[of] + rng.normal(0.0, 0.2, len(of))
    sigma_x, sigma_y = rng.uniform(0.1, 0.4, (2, len(of)))
    return {
        "x": x + sigma_x * rng.normal(size=len(of)), "y": y + sigma_y * rng.normal(size=len(of)), "sigma_x": sigma_x,
        "sigma_y": sigma_y, "of": of,
    }  # fmt: skip


def ours(given, latents):
    """Model and data."""
    import hbm_jax as hbm

    columns = {name: given[name] for name in ("x", "y", "sigma_x", "sigma_y")} | {
        "group": [f"g{i}" for i in given["of"]]
    }
    model = hbm.models.Relation(pivot=0.0, priors=PRIORS, latents=latents)
    return model, hbm.data.PointsInGroups.from_columns(columns)


OURS = {"marginal": "marginal", "sampled": "sampled"}


def numpyro_program(given, form):
    """Return the model as a careful user of NumPyro would write it: vectorised, centred or non-centred."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    num, of = int(given["of"].max()) + 1, given["of"]

    def program():
        p = {}
        for name, text in PRIORS.items():
            arguments = [float(v) for v in re.findall(r"[\d.]+", text)]
            p[name] = numpyro.sample(name, getattr(dist, text.split("(")[0])(*arguments))

        def latent(name, size):
            mean, std = p[f"{name}_mean"], p[f"{name}_std"]
            if form == "centred":
                return numpyro.sample(name, dist.Normal(mean, std).expand([size]))
            return mean + std * numpyro.sample(f"{name}_free", dist.Normal().expand([size]))

        alpha, beta, x = latent("alpha", num), latent("beta", num), latent("x", len(of))
        numpyro.sample("x_obs", dist.Normal(x, given["sigma_x"]), obs=given["x"])
        scale = jnp.sqrt(given["sigma_y"] ** 2 + p["intrinsic_scatter"] ** 2)
        numpyro.sample("y_obs", dist.Normal(alpha[of] * x + beta[of], scale), obs=given["y"])

    return program


def pymc_model(given, form):
    """Write the same in PyMC."""
    import pymc as pm

    num, of = int(given["of"].max()) + 1, given["of"]
    with pm.Model() as model:
        p = {}
        for name, text in PRIORS.items():
            arguments = [float(v) for v in re.findall(r"[\d.]+", text)]
            p[name] = getattr(pm, text.split("(")[0])(name, *arguments)

        def latent(name, size):
            mean, std = p[f"{name}_mean"], p[f"{name}_std"]
            if form == "centred":
                return pm.Normal(name, mean, std, shape=size)
            return mean + std * pm.Normal(f"{name}_free", 0, 1, shape=size)

        alpha, beta, x = latent("alpha", num), latent("beta", num), latent("x", len(of))
        pm.Normal("x_obs", x, given["sigma_x"], observed=given["x"])
        scale = pm.math.sqrt(given["sigma_y"] ** 2 + p["intrinsic_scatter"] ** 2)
        pm.Normal("y_obs", alpha[of] * x + beta[of], scale, observed=given["y"])
    return model


def stan_data(given, form):
    """Return what the Stan program reads."""
    return {
        "J": int(given["of"].max()) + 1, "n": len(given["of"]), "group": (given["of"] + 1).tolist(),
        "x_obs": given["x"], "y_obs": given["y"], "sigma_x": given["sigma_x"], "sigma_y": given["sigma_y"],
        "centred": int(form == "centred"),
    }  # fmt: skip


def stan_start(given, form, rng):
    """Return the starting point of a chain of Stan, near typical values."""
    start = {name: float(value * (1 + 0.05 * rng.normal())) for name, value in TYPICAL.items()}
    num = int(given["of"].max()) + 1
    free = (np.full(num, 1.4), np.full(num, 0.4), given["x"])
    free = free if form == "centred" else [np.zeros_like(v) for v in free]
    return start | {f"{k}_free": v.tolist() for k, v in zip(("alpha", "beta", "x"), free, strict=True)}
