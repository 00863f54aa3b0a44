"""Parameters of every model have symbols, and units where they have a dimension."""

import dataclasses
import itertools
import typing

import pytest
from matplotlib.mathtext import MathTextParser

from hbm_jax.models.base import _choices
from hbm_jax.models.symbols import IN_MODELS, SYMBOLS, symbol_of
from hbm_jax.registry import BUILT_IN, MODELS

EXPRESSION = (
    "tbabs * zpcfabs(cover, z=0.1) * edge(fe) * (powerlaw + bbody(bb) + gauss(line) + cutoffpl(jet) "
    "+ highecut(h) * bremss(plasma) + logpar(lp))"
)
NEEDED = {
    "spectrum": {"spectrum": EXPRESSION, "calibration": True},
    "spectra": {"spectrum": "tbabs * constant(k) * (powerlaw + bbody(bb))", "calibration": True},
}
# Priors of parameters whose unit is that of the data, or that have no dimension.
DIMENSIONLESS = {
    "supernova": {"Om0", "Ode0", "Ok0", "w0", "wa", "beta", "x1_mean", "x1_std", "outlier_fraction", "delta_beta"},
    "supernova-correlated": {"Om0", "beta", "w0", "wa"},
    "hubble-diagram": {"Om0", "w0", "wa"},
    "afterglow": {"photon_index_mean", "photon_index_std", "metallicity"},
    "golenetskii": {"gamma_mean", "gamma_std", "gamma", "correlation", "z"},
}
HAVE_UNITS = {
    "supernova": {"H0": "km/s/Mpc", "M0": "mag", "alpha": "mag", "sigma_int": "mag", "c_mean": "mag", "c_std": "mag"},
    "supernova-correlated": {"H0": "km/s/Mpc", "M0": "mag", "alpha": "mag", "delta_M": "mag", "sigma_int": "mag"},
    "hubble-diagram": {"H0": "km/s/Mpc", "M0": "mag", "sigma_int": "mag"},
    "afterglow": {"log10_flux_mean": "erg/cm^2/s", "log10_nh_mean": "1e22/cm^2", "log10_nh_std": "dex"},
    "golenetskii": {"log10_N_mean": "erg/s", "log10_N_std": "dex", "intrinsic_scatter": "dex"},
    "golenetskii-counts": {"log10_E_peak_mean": "keV", "log10_E_peak_std": "dex", "log10_N_mean": "erg/s"},
    "spectrum": {"nh": "1e22/cm^2", "bb_kT": "keV", "line_energy": "keV", "line_log10_amplitude": "photons/cm^2/s"},
    "spectra": {"log10_nh_mean": "1e22/cm^2", "log10_bb_kT_mean": "keV", "log10_bb_kT_std": "dex"},
}


def variants(name):
    """The model with its defaults, with every value of every option, and with every pair of values."""
    model, needed = MODELS[name].model, NEEDED.get(name, {})
    hints, choices = typing.get_type_hints(model), _choices(model)
    options = {
        item.name: choices[item.name][0] if item.name in choices else (True, False)
        for item in dataclasses.fields(model)
        if item.name not in needed and (item.name in choices or hints[item.name] is bool)
    }
    values = [[(option, value) for value in values] for option, values in options.items()]
    single = [(pair,) for pairs in values for pair in pairs]
    double = [both for one, other in itertools.combinations(values, 2) for both in itertools.product(one, other)]
    for chosen in [(), *single, *double]:
        try:
            yield model(**needed, **dict(chosen))
        except ValueError:  # options that exclude each other
            assert chosen


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_parameter_has_a_symbol_and_its_unit(name):
    parser, drawn, tried, units = MathTextParser("path"), set(), 0, {}
    for model in variants(name):
        tried += 1
        symbols = model.symbols
        assert {*model.all_priors} <= {*symbols}, f"{model}: { ({*model.all_priors} - {*symbols}) }"
        shown = {symbols[parameter] for parameter in model.all_priors}
        assert len(shown) == len(model.all_priors), "two parameters of a model with one symbol"
        drawn |= shown
        units |= {parameter: model.units.get(parameter, "") for parameter in model.all_priors}
    assert tried >= 3 or name in NEEDED
    for symbol in drawn:
        parser.parse(symbol)  # raises an error for what matplotlib cannot draw
    for parameter, unit in HAVE_UNITS.get(name, {}).items():
        assert units[parameter] == unit, parameter
    assert not any(units.get(parameter) for parameter in DIMENSIONLESS.get(name, ()))
    if name in ("relation", "normal", "normal-vectors", "regression", "rates"):
        assert not any(units.values()), "units of these models are those of the data"


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("bb_kT", "$kT$ (bb)"),
        ("a_b_nh", r"$N_\mathrm{H}$ (a b)"),
        ("log10_bb_kT_std", r"$\sigma(\log_{10}\,kT)$ (bb)"),
        ("log10_nh_mean", SYMBOLS["log10_nh_mean"]),
        ("my_slope", None),
        ("slope_mean", None),
        ("log10_slope", None),
        ("_", None),
    ],
)
def test_labels_moments_and_logarithms(name, symbol):
    assert symbol_of(name) == symbol


def test_symbols_of_models_are_not_those_of_other_programs():
    assert not {*IN_MODELS} & {*SYMBOLS}
