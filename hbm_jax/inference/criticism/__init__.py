"""Model criticism: predictive draws, simulation-based calibration, cross-validation, prior sensitivity."""
