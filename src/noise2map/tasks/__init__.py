"""Tasks: what depends on the kind of map outside the network."""
