"""Inference for any NumPyro program: sampling, convergence verdict, model criticism, results and predictions.

Names are imported on first use: the options of a run, which the help of the command line shows, need neither ArviZ nor
the statistics of SciPy.
"""

import importlib
from typing import TYPE_CHECKING

# ruff: noqa: F401
if TYPE_CHECKING:
    from hbm_jax.inference.batch.executor import TaskError
    from hbm_jax.inference.batch.fit_each import fit_each
    from hbm_jax.inference.batch.results import Fits
    from hbm_jax.inference.centering.pilot import Centering, centre
    from hbm_jax.inference.checksum import DamageWarning
    from hbm_jax.inference.compilation.cache import use_compilation_cache
    from hbm_jax.inference.compilation.devices import use_every_core
    from hbm_jax.inference.criticism.calibration import Calibration, calibrate
    from hbm_jax.inference.criticism.comparison import Comparison, compare
    from hbm_jax.inference.criticism.evidence import Evidence, evidence
    from hbm_jax.inference.criticism.influence import leave_groups_out
    from hbm_jax.inference.criticism.leave_out import Loo, loo
    from hbm_jax.inference.criticism.pointwise import log_likelihood
    from hbm_jax.inference.criticism.predictive import latents, posterior_predictive, prior_predictive
    from hbm_jax.inference.criticism.refitting import refit
    from hbm_jax.inference.criticism.sensitivity import Sensitivity, prior_sensitivity
    from hbm_jax.inference.likelihood.grid import ProfileGrid, profile_grid
    from hbm_jax.inference.likelihood.profile import MaximumLikelihood, maximum_likelihood
    from hbm_jax.inference.model_check.check import check_model
    from hbm_jax.inference.model_check.result import ModelCheck
    from hbm_jax.inference.modes.look import Modes, look_for_modes
    from hbm_jax.inference.results import Fit, ResultFileError, ResultsError, load
    from hbm_jax.inference.sampler.checkpoint import CheckpointError
    from hbm_jax.inference.sampler.kernels.chees import ChEES
    from hbm_jax.inference.sampler.kernels.hmc import HMC
    from hbm_jax.inference.sampler.kernels.independent_proposals import IndependentProposals
    from hbm_jax.inference.sampler.kernels.nutpie import Nutpie
    from hbm_jax.inference.sampler.kernels.nuts import NUTS
    from hbm_jax.inference.sampler.kernels.protocol import Sampler
    from hbm_jax.inference.sampler.kernels.walnuts import WALNUTS
    from hbm_jax.inference.sampler.loop import Interrupted
    from hbm_jax.inference.sampler.target import StartError
    from hbm_jax.inference.sampling import resume, sample
    from hbm_jax.inference.verdict import Verdict, judge

_MODULES = {
    "HMC": "sampler.kernels.hmc",
    "NUTS": "sampler.kernels.nuts",
    "Calibration": "criticism.calibration",
    "Centering": "centering.pilot",
    "ChEES": "sampler.kernels.chees",
    "CheckpointError": "sampler.checkpoint",
    "Comparison": "criticism.comparison",
    "DamageWarning": "checksum",
    "Evidence": "criticism.evidence",
    "Fit": "results",
    "Fits": "batch.results",
    "IndependentProposals": "sampler.kernels.independent_proposals",
    "Interrupted": "sampler.loop",
    "Loo": "criticism.leave_out",
    "MaximumLikelihood": "likelihood.profile",
    "ModelCheck": "model_check.result",
    "Modes": "modes.look",
    "Nutpie": "sampler.kernels.nutpie",
    "ProfileGrid": "likelihood.grid",
    "ResultFileError": "results",
    "ResultsError": "results",
    "Sampler": "sampler.kernels.protocol",
    "Sensitivity": "criticism.sensitivity",
    "StartError": "sampler.target",
    "TaskError": "batch.executor",
    "Verdict": "verdict",
    "WALNUTS": "sampler.kernels.walnuts",
    "calibrate": "criticism.calibration",
    "centre": "centering.pilot",
    "check_model": "model_check.check",
    "compare": "criticism.comparison",
    "evidence": "criticism.evidence",
    "fit_each": "batch.fit_each",
    "judge": "verdict",
    "latents": "criticism.predictive",
    "leave_groups_out": "criticism.influence",
    "load": "results",
    "log_likelihood": "criticism.pointwise",
    "loo": "criticism.leave_out",
    "look_for_modes": "modes.look",
    "maximum_likelihood": "likelihood.profile",
    "posterior_predictive": "criticism.predictive",
    "prior_predictive": "criticism.predictive",
    "prior_sensitivity": "criticism.sensitivity",
    "profile_grid": "likelihood.grid",
    "refit": "criticism.refitting",
    "resume": "sampling",
    "sample": "sampling",
    "use_compilation_cache": "compilation.cache",
    "use_every_core": "compilation.devices",
}

__all__ = list(_MODULES)
_FORMER = {"ShareError": "batch.executor"}  # former names


def __getattr__(name):
    module = (_MODULES | _FORMER).get(name)
    if module is not None:
        return getattr(importlib.import_module(f"hbm_jax.inference.{module}"), name)
    raise AttributeError(f"module 'hbm_jax.inference' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *__all__])
