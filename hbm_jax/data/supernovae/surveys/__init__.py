"""Detection limits of surveys, and sensitivities of light-curve parameters to calibration."""
