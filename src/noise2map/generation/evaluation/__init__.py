"""Evaluation of image generators."""
