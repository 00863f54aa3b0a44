"""Criteria of convergence, of the verdict and of the stopping rule."""

MAX_R_HAT = 1.01  # Vehtari et al. 2021, Bayesian Analysis 16, 667
MIN_ESS = 400.0  # bulk and tail, the same paper
MIN_BFMI = 0.3  # Betancourt 2016, arXiv:1604.00695
