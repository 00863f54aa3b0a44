"""What surveys publish beside light-curve parameters: detection limits, and sensitivities to calibration."""
