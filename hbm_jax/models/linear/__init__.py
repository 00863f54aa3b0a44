"""Linear relations with errors in both variables, and the normal hierarchical family."""
