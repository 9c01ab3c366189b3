"""Agreement of maps over time."""
