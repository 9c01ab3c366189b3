"""Training of image generators, depth priors and depth predictors."""
