"""Experiments of several trainings."""
