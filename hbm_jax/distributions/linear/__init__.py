"""Linear relations with measurement errors in all variables, with the true values integrated out."""
