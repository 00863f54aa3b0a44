"""Model criticism: log likelihoods on request, prediction of data left out, comparison, sensitivity to priors."""

from hbm_jax.inference.criticism.comparison import Comparison, compare
from hbm_jax.inference.criticism.influence import leave_groups_out
from hbm_jax.inference.criticism.leave_out import Loo, loo
from hbm_jax.inference.criticism.likelihood import log_likelihood
from hbm_jax.inference.criticism.refitting import refit
from hbm_jax.inference.criticism.sensitivity import Sensitivity, prior_sensitivity

__all__ = [
    "Comparison",
    "Loo",
    "Sensitivity",
    "compare",
    "leave_groups_out",
    "log_likelihood",
    "loo",
    "prior_sensitivity",
    "refit",
]
