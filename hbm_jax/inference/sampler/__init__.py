"""Markov chains: initialisation, adaptation, the sampling loop, its checkpoints and stopping rules."""
