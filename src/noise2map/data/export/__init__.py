"""Freedoom rooms written in the layouts of the public data sets, so that all that reads those can be tried on real content."""

from noise2map.data.export.job import ExportReport, export_frames
from noise2map.data.export.layouts import LAYOUTS

__all__ = ["LAYOUTS", "ExportReport", "export_frames"]
