"""Multivariate normal distributions: linear Gaussian, grouped, and with structured covariances."""
