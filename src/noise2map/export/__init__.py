"""Models for other programs: encoder and decoder step as graphs, the sampling loop without torch, and what is lost by it."""
