"""Tables for regressions, and the formulas that describe them."""
