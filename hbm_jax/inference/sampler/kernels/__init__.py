"""Samplers: NUTS, Hamiltonian Monte Carlo, and independent proposals between their trajectories."""
