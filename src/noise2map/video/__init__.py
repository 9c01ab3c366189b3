"""Video: maps of the frames of a clip, read and written as streams.

The names are imported on first use: checking a command's words must not cost the import of a model.
"""

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "ClipPredictor": "noise2map.video.clip",
    "FlowFolder": "noise2map.video.flows",
    "VideoReader": "noise2map.video.reading",
    "predict_frames": "noise2map.video.clip",
    "predict_video": "noise2map.video.predicting",
}

__all__ = ["ClipPredictor", "FlowFolder", "VideoReader", "predict_frames", "predict_video"]

if TYPE_CHECKING:
    from noise2map.video.clip import ClipPredictor, predict_frames
    from noise2map.video.flows import FlowFolder
    from noise2map.video.predicting import predict_video
    from noise2map.video.reading import VideoReader


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
