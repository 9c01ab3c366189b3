"""Experiments on a trained map model: does it read its noisy map, do its steps bring anything."""
