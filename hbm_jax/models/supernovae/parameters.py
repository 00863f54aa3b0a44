"""Default priors and units of the supernova model's parameters, without those of the cosmology."""

from numpyro import distributions as dist

from hbm_jax.models.priors import Prior

# Weakly informative: some ten times wider than the constraints of modern samples, except where a scale is known.
DEFAULT_PRIORS: dict[str, Prior] = {
    "M0": dist.Normal(-19.3, 1.0),
    "alpha": dist.Normal(0.0, 0.5),
    "beta": dist.Normal(0.0, 5.0),
    "delta_M": dist.Normal(0.0, 0.2),
    "sigma_int": dist.HalfNormal(0.3),
    "x1_mean": dist.Normal(0.0, 1.0),
    "x1_std": dist.HalfNormal(2.0),
    "c_mean": dist.Normal(0.0, 0.2),
    "c_std": dist.HalfNormal(0.3),
}

HOST_BETA: dict[str, Prior] = {"delta_beta": dist.Normal(0.0, 1.0)}
STRETCH: dict[str, dict[str, Prior]] = {
    "normal": {},
    "skewed": {"x1_skew": dist.Normal(0.0, 4.0)},
    "two": {
        "x1_shift": dist.HalfNormal(2.0),
        "x1_std_low": dist.HalfNormal(2.0),
        "x1_fraction_low": dist.Uniform(0.0, 1.0),
    },
}
COLOUR: dict[str, dict[str, Prior]] = {
    "normal": {},
    "skewed": {"c_skew": dist.Normal(0.0, 4.0)},
    "dust": {"beta_dust": dist.Normal(4.0, 2.0), "c_dust": dist.HalfNormal(0.2)},
    "broken": {"beta_red": dist.Normal(0.0, 5.0)},
}
DRIFT: dict[str, Prior] = {"x1_drift": dist.Normal(0.0, 1.0), "c_drift": dist.Normal(0.0, 0.2)}
SELECTION: dict[str, Prior] = {
    "m_lim": dist.Normal(24.0, 2.0),
    "m_lim_width": dist.LogNormal(-1.2, 0.5),
    "m_lim_colour": 0.0,
}

UNITS = {
    "H0": "km/s/Mpc",
    "M0": "mag",
    "alpha": "mag",
    "delta_M": "mag",
    "sigma_int": "mag",
    "c_mean": "mag",
    "c_std": "mag",
    "c_true": "mag",
    "m_b_true": "mag",
    "c_dust": "mag",
    "c_drift": "mag",
    "outlier_scatter": "mag",
    "m_lim": "mag",
    "m_lim_width": "mag",
}


def outlier_priors() -> dict[str, Prior]:
    """Return the default priors of outliers. Not a constant, because creating a Beta initialises JAX at import."""
    return {"outlier_fraction": dist.Beta(1.0, 19.0), "outlier_scatter": dist.LogNormal(0.0, 0.5)}
