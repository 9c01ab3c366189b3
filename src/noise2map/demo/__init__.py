"""The demo: one page of maps, uncertainty, scores and guided images."""
