"""Inference for any NumPyro program: sampling, the verdict on what came out, results and predictions."""

from hbm_jax.inference.checkpoint import CheckpointError
from hbm_jax.inference.devices import use_every_core
from hbm_jax.inference.diagnostics import Verdict, judge
from hbm_jax.inference.loop import Interrupted
from hbm_jax.inference.predictive import latents, posterior_predictive, prior_predictive
from hbm_jax.inference.results import Fit, ResultFileError, load
from hbm_jax.inference.sampling import resume, sample

__all__ = [
    "CheckpointError",
    "Fit",
    "Interrupted",
    "ResultFileError",
    "Verdict",
    "judge",
    "latents",
    "load",
    "posterior_predictive",
    "prior_predictive",
    "resume",
    "sample",
    "use_every_core",
]
