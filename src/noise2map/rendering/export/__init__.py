"""Freedoom rooms written in the layouts of the public datasets, so that all that reads those can be tried on real content."""

from noise2map.rendering.export.export import ExportReport, export_frames
from noise2map.rendering.export.layouts import LAYOUTS

__all__ = ["LAYOUTS", "ExportReport", "export_frames"]
