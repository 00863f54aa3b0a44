"""JLA supernovae, flat wCDM: m_B, x1 and c with their covariances, the Tripp relation and a host step.

The others sample the true (x1, c, m_b) of every supernova; distances are 1/E at Chebyshev nodes and one matrix, noise
is whitened by factors computed beforehand. Centred latents are in units of their errors around what was observed.
"""

import numpy as np
from numpy.polynomial import chebyshev

TITLE = "JLA, {num} supernovae, flat wCDM"
NAMES = ("Om0", "w0", "M0", "alpha", "beta", "delta_M", "sigma_int", "x1_mean", "x1_std", "c_mean", "c_std")
SHARE, PATIENCE = 1, 2  # of the draws and the seconds that are usual
SIZES = {"num": 740}
QUICK_SIZES = {"num": 185}
FORMS = ("centred", "non-centred")
SHIFTS: dict[str, float] = {}
PROGRAM = {"centred": "jla_latents.stan", "non-centred": "jla_noncentred.stan"}
OURS = {"marginal": "marginal", "sampled": "sampled"}
NODES = 16
TYPICAL = {
    "Om0": (0.30, 0.05), "w0": (-1.0, 0.15), "M0": (-19.05, 0.03), "alpha": (0.14, 0.01), "beta": (3.1, 0.1),
    "delta_M": (-0.05, 0.01), "sigma_int": (0.11, 0.01), "x1_mean": (0.0, 0.1), "x1_std": (0.95, 0.05),
    "c_mean": (-0.02, 0.005), "c_std": (0.075, 0.005),
}  # fmt: skip
PRIORS = {
    "Om0": ("Uniform", 0, 1), "w0": ("Uniform", -3, 0), "M0": ("Normal", -19.3, 1), "alpha": ("Normal", 0, 0.5),
    "beta": ("Normal", 0, 5), "delta_M": ("Normal", 0, 0.2), "sigma_int": ("HalfNormal", 0.3),
    "x1_mean": ("Normal", 0, 1), "x1_std": ("HalfNormal", 2), "c_mean": ("Normal", 0, 0.2),
    "c_std": ("HalfNormal", 0.3),
}  # fmt: skip


def problem(num):
    """Return the sample, evenly thinned, as arrays: (x1, c, m_b), their covariance, what turns 1/E into distances."""
    from hbm_jax import constants
    from hbm_jax.data import load_jla

    sne = load_jla()
    sne = sne.subset(np.arange(0, len(sne), len(sne) // num))
    order = [1, 2, 0]
    covariance = sne.covariance[:, order][:, :, order].copy()
    covariance[:, 2, 2] += sne.variance_lensing + sne.variance_velocity
    u_sne = np.log1p(sne.z_cmb)
    x = np.cos((np.arange(NODES) + 0.5) * np.pi / NODES)
    coefficients = np.linalg.inv(chebyshev.chebvander(x, NODES - 1))
    antiderivatives = chebyshev.chebint(np.eye(NODES), lbnd=-1, axis=1)
    integral = chebyshev.chebvander(2 * u_sne / u_sne.max() - 1, NODES) @ antiderivatives.T @ coefficients
    return {
        "x1": sne.x1, "c": sne.c, "m_b": sne.m_b, "covariance": covariance, "is_massive": (sne.log10_mass > 10) * 1.0,
        "u": (x + 1) / 2 * u_sne.max(), "integral": integral * u_sne.max() / 2,
        "modulus_of_one": 5 * np.log10((1 + sne.z_hel) * constants.speed_of_light_km_s / 70.0) + 25, "data": sne,
    }  # fmt: skip


def ours(given, latents):
    """Model and data."""
    import hbm_jax as hbm

    return hbm.models.Supernova(cosmology="wcdm", latents=latents), given["data"]


def _expected(given, p, xp):
    """Distance modulus plus M0 and the host step, of a supernova with x1 = c = 0."""
    u = given["u"]
    integrand = 1 / xp.sqrt(p["Om0"] * np.exp(u) + (1 - p["Om0"]) * xp.exp((1 + 3 * p["w0"]) * u))
    modulus = given["modulus_of_one"] + 5 / np.log(10) * xp.log(xp.dot(given["integral"], integrand))
    return modulus + p["M0"] + p["delta_M"] * given["is_massive"]


def _whitened(given, truth):
    """Residuals over the noise, three vectors."""
    w = np.linalg.inv(np.linalg.cholesky(given["covariance"]))
    r = [t - given[name] for t, name in zip(truth, ("x1", "c", "m_b"), strict=True)]
    return [sum(w[:, i, j] * r[j] for j in range(i + 1)) for i in range(3)]


def numpyro_program(given, form):
    """Return the model as an expert in NumPyro would write it."""
    import jax.numpy as jnp
    import numpyro
    from numpyro import distributions as dist

    num = len(given["x1"])
    errors = dict(zip(("x1", "c", "m_b"), np.sqrt(np.einsum("nii->in", given["covariance"])), strict=True))

    def latent(name, mean, std):
        if form == "non-centred":
            return mean + std * numpyro.sample(f"{name}_free", dist.Normal().expand([num]))
        free = numpyro.sample(f"{name}_free", dist.ImproperUniform(dist.constraints.real, (num,), ()))
        truth = given[name] + errors[name] * free
        numpyro.factor(f"{name}_population", dist.Normal(mean, std).log_prob(truth).sum())
        return truth

    def program():
        p = {name: numpyro.sample(name, getattr(dist, kind)(*a)) for name, (kind, *a) in PRIORS.items()}
        x1, c = latent("x1", p["x1_mean"], p["x1_std"]), latent("c", p["c_mean"], p["c_std"])
        m_b = latent("m_b", _expected(given, p, jnp) - p["alpha"] * x1 + p["beta"] * c, p["sigma_int"])
        numpyro.factor("observed", -0.5 * sum(jnp.sum(r**2) for r in _whitened(given, (x1, c, m_b))))

    return program


def pymc_model(given, form):
    """Write the same in PyMC."""
    import pymc as pm

    num = len(given["x1"])
    errors = dict(zip(("x1", "c", "m_b"), np.sqrt(np.einsum("nii->in", given["covariance"])), strict=True))

    def latent(name, mean, std):
        if form == "non-centred":
            return mean + std * pm.Normal(f"{name}_free", 0, 1, shape=num)
        truth = given[name] + errors[name] * pm.Flat(f"{name}_free", shape=num)
        pm.Potential(f"{name}_population", pm.logp(pm.Normal.dist(mean, std, shape=num), truth).sum())
        return truth

    with pm.Model() as model:
        p = {name: getattr(pm, kind)(name, *a) for name, (kind, *a) in PRIORS.items()}
        x1, c = latent("x1", p["x1_mean"], p["x1_std"]), latent("c", p["c_mean"], p["c_std"])
        m_b = latent("m_b", _expected(given, p, pm.math) - p["alpha"] * x1 + p["beta"] * c, p["sigma_int"])
        pm.Potential("observed", -0.5 * sum((r**2).sum() for r in _whitened(given, (x1, c, m_b))))
    return model


def stan_data(given, form):
    """Return what the Stan programs read."""
    return given | {"N": len(given["x1"]), "K": NODES}


def stan_start(given, form, rng):
    """Return the starting point of a chain of Stan."""
    start = {name: float(rng.normal(*spread)) for name, spread in TYPICAL.items()}
    errors = np.sqrt(np.einsum("nii->in", given["covariance"]))
    for name, error in zip(("x1", "c", "m_b"), errors, strict=True):
        start[f"{name}_true"] = (given[name] + 0.3 * error * rng.normal(size=len(error))).tolist()
        start[f"{name}_standard"] = (0.3 * rng.normal(size=len(error))).tolist()
    kept = "_true" if form == "centred" else "_standard"
    return {k: v for k, v in start.items() if isinstance(v, float) or k.endswith(kept)}
