"""Best fits of spectra without sampling: parameters, fluxes and luminosities with errors, goodness, tables, figures."""

from hbm_jax.best_fits.fit import BestFit, best_fit
from hbm_jax.best_fits.fluxes import posterior_fluxes
from hbm_jax.best_fits.lines import line_table, posterior_lines
from hbm_jax.best_fits.loading import load
from hbm_jax.best_fits.profiles import Profile

__all__ = ["BestFit", "Profile", "best_fit", "line_table", "load", "posterior_fluxes", "posterior_lines"]
