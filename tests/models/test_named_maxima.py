"""The maximum of the likelihood of every model, with intervals by profile, in parameters that have names."""

import dataclasses

import numpy as np
import pytest
import stored_fits
from models.test_correlated_supernova import some_of_jla
from models.test_rates import pumps

import hbm_jax as hbm
from hbm_jax.data import RegressionData
from hbm_jax.models import CorrelatedSupernova, Normal, Rates, Regression, Supernova

EXPANSIONS = {
    "lcdm": ["Om0"],
    "wcdm": ["Om0", "w0"],
    "olcdm": ["Om0", "Ode0"],
    "w0wacdm": ["Om0", "wa", "w0"],
    "binned(0.4)": ["Om0", "w_1", "w_2"],
}
TRIPP = ["M0", "alpha", "beta", "delta_M"]
POPULATIONS = ["sigma_int", "x1_mean", "x1_std", "c_mean", "c_std"]
PEAKS = ["log10_E_peak_mean", "log10_E_peak_std"]


def changed(name, **options):
    """Program of a stored fit with other options, and its arguments."""
    model, args, _ = stored_fits.RECIPES[name]()
    return dataclasses.replace(model, **options), args


def slope():
    x = np.linspace(0.0, 1.0, 20)
    columns = {"x": x, "y": 1.0 + x + 0.1 * np.sin(40.0 * x)}
    return Regression(), (RegressionData.from_columns(columns, "y ~ x"),)


CASES = {
    "rates": (lambda: (Rates(family="poisson"), (pumps(),)), ["mean", "dispersion"]),
    "schools": (lambda: (Normal(latents="marginal"), stored_fits.eight_schools()[1]), ["mu", "tau"]),
    "regression": (slope, ["coef[Intercept]", "coef[x]", "sigma"]),
    "vectors": (
        lambda: changed("normal_vectors", latents="marginal"),
        [f"{name}[{i}]" for name in ("mu", "tau", "sigma") for i in range(2)],
    ),
    "relation": (
        lambda: changed("relation", pooling="complete"),
        ["x_mean", "x_std", "intrinsic_scatter", "alpha", "beta"],
    ),
    "bursts": (
        lambda: changed("golenetskii_pooled"),
        ["gamma", "log10_N", "intrinsic_scatter", *PEAKS],
    ),
}
for _name, _parameters in EXPANSIONS.items():
    CASES[f"distances, {_name}"] = (
        lambda name=_name: changed("hubble_diagram", cosmology=name, priors={}),
        _parameters,
    )
    CASES[f"supernovae, {_name}"] = (
        lambda name=_name: (Supernova(cosmology=name), stored_fits.supernova()[1]),
        _parameters + TRIPP + POPULATIONS,
    )
    CASES[f"correlated, {_name}"] = (
        lambda name=_name: (CorrelatedSupernova(cosmology=name), some_of_jla(20)[:1]),
        _parameters + TRIPP,
    )
QUICK = ("rates", "regression")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in CASES]
)
def test_maxima_and_intervals_are_of_named_parameters(name):
    make, parameters = CASES[name]
    program, args = make()
    table = hbm.maximum_likelihood(program, *args, num_starts=2).table
    assert list(table.index) == parameters
    assert ((table["lower"] <= table["value"]) & (table["value"] <= table["upper"])).all()
    assert (table["lower"] < table["upper"]).all()
    assert np.isfinite(table[["lower", "upper"]]).all().all()


@pytest.mark.long
@pytest.mark.parametrize("name", ["relation", "golenetskii", "eight_schools", "regression"])
def test_hierarchies_are_refused(name):
    program, args = changed(name)
    with pytest.raises(ValueError, match=r"is hierarchical: sample it|Sample the program|CorrCholesky"):
        hbm.maximum_likelihood(program, *args, num_starts=1)
