"""Model criticism: predictive draws, calibration, cross-validation, sensitivity to priors."""
