"""Points with errors in groups, and values in groups."""
