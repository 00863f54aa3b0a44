"""Data of linear relations and of the normal hierarchy: points and values with errors, in groups."""
