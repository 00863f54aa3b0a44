"""Inference for any NumPyro program: sampling, the verdict on what came out, results and predictions."""

from hbm_jax.inference.devices import use_every_core
from hbm_jax.inference.diagnostics import Verdict, judge
from hbm_jax.inference.predictive import latents, posterior_predictive, prior_predictive
from hbm_jax.inference.results import Fit, ResultFileError, load
from hbm_jax.inference.sampling import sample

__all__ = [
    "Fit",
    "ResultFileError",
    "Verdict",
    "judge",
    "latents",
    "load",
    "posterior_predictive",
    "prior_predictive",
    "sample",
    "use_every_core",
]
