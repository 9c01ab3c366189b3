"""Distributions that heads predict in one pass, with their likelihoods and quantiles."""
