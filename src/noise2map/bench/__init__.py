"""Benchmarks: time and memory, stage by stage."""
