"""Evaluation of models: scores under published and own protocols."""
