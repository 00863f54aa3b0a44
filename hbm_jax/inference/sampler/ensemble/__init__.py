"""Many chains of one posterior, adapted together, and their diagnostics by superchains."""
