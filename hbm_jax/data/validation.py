"""Moved to hbm_jax.validation."""

from hbm_jax.validation import *  # noqa: F403
from hbm_jax.validation import DataError, did_you_mean, listed, reject_unknown, reject_rows, frozen_array  # noqa: F401
