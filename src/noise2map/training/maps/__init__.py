"""Training of map models."""
