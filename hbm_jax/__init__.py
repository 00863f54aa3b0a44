"""Hierarchical Bayesian models for populations of astrophysical objects, in JAX.

Fit the data of a whole population, with their errors, and check the posterior of the population parameters:

>>> import hbm_jax as hbm
>>> sne = hbm.data.load_jla()
>>> model = hbm.models.Supernova(cosmology="wcdm")
>>> fit = hbm.sample(model, sne, seed=1)  # doctest: +SKIP
>>> print(fit.verdict)  # doctest: +SKIP

Submodules are imported on first use. Importing the package computes nothing and sets no JAX option.
"""

import importlib

__version__ = "0.2.0"

_MODULES = (
    "absorption",
    "best_fits",
    "cosmology",
    "data",
    "distributions",
    "inference",
    "models",
    "plotting",
    "spectra",
)
_NAMES = {
    "ChEES": "hbm_jax.inference",
    "Fit": "hbm_jax.inference",
    "HMC": "hbm_jax.inference",
    "IndependentProposals": "hbm_jax.inference",
    "NUTS": "hbm_jax.inference",
    "Nutpie": "hbm_jax.inference",
    "WALNUTS": "hbm_jax.inference",
    "best_fit": "hbm_jax.best_fits",
    "calibrate": "hbm_jax.inference",
    "centre": "hbm_jax.inference",
    "check_model": "hbm_jax.inference",
    "compare": "hbm_jax.inference",
    "evidence": "hbm_jax.inference",
    "fit_each": "hbm_jax.inference",
    "latents": "hbm_jax.inference",
    "leave_groups_out": "hbm_jax.inference",
    "loo": "hbm_jax.inference",
    "look_for_modes": "hbm_jax.inference",
    "maximum_likelihood": "hbm_jax.inference",
    "posterior_predictive": "hbm_jax.inference",
    "prior_predictive": "hbm_jax.inference",
    "prior_sensitivity": "hbm_jax.inference",
    "profile_grid": "hbm_jax.inference",
    "sample": "hbm_jax.inference",
    "use_every_core": "hbm_jax.inference",
    "load": "hbm_jax.runs",
    "resume": "hbm_jax.runs",
}

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"hbm_jax.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'hbm_jax' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
