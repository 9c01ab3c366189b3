"""Depth models under their former names, see `noise2map.inference.depth_models`."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from noise2map.inference.depth_models import DEFAULT_DEPTH_MODEL as DEFAULT_ESTIMATOR
from noise2map.inference.depth_models import DepthModel as DepthEstimator
from noise2map.inference.depth_models import load_depth_model as make_estimator
from noise2map.inference.predictor import Predictor
from noise2map.zoo import available, bare_name, resolve_model

__all__ = ["DEFAULT_ESTIMATOR", "DepthEstimator", "make_estimator"]

_METRIC_TYPES = ("zoedepth", "depth_pro")


class DepthLabeller:
    """A depth model as a function from a picture to depth at the picture's size.

    Our own depth models (``Noise2MapForDepthEstimation``: shipped name, folder or hub id) and depth estimators of transformers
    are taken. Metric models give metres; relative ones are scaled to [0, 1] for each picture between the 2nd and the 98th
    percentile, with 0 for near: the models give inverse depth.

    Args:
        name: which model.
        device: where it runs.

    Raises:
        OSError: if it cannot be found.
        ValueError: if it is no depth model, or its weights cannot be read.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        local = Path(name).expanduser().is_dir() or bare_name(name) in available()
        if not local and (name.startswith((".", "/", "~")) or "/" not in name):
            raise FileNotFoundError(
                f"labels {name!r} are neither 'truth' nor a depth model: no such folder, hub id or shipped name"
            )
        source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else resolve_model(name)
        self.name, self.device = name, device
        self._ours: Predictor | None = None
        try:
            kind = PreTrainedConfig.get_config_dict(source)[0].get("model_type")
            if kind == "noise2map":
                self._ours = Predictor.from_pretrained(source, device)
                if self._ours.task != "depth":
                    raise ValueError(f"labels {name!r} is a {self._ours.task} model; expected a depth model")
                self.metric = True
                return
            from transformers import AutoImageProcessor, AutoModelForDepthEstimation

            self._processor = AutoImageProcessor.from_pretrained(source)
            self._model = AutoModelForDepthEstimation.from_pretrained(source).to(device).eval()
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"labels {name!r} cannot be loaded: {error}") from error
        self.metric = getattr(self._model.config, "depth_estimation_type", None) == "metric" or kind in _METRIC_TYPES

    @torch.no_grad()
    def __call__(self, image: Image.Image, image_id: str) -> np.ndarray:
        """Depth ``(H, W)`` float32 of an RGB picture: metres, or relative in [0, 1]."""
        if self._ours is not None:
            return self._ours(image, [image_id])[0].depth_m.astype(np.float32)
        inputs = self._processor(images=image, return_tensors="pt").to(self.device)
        found = self._model(**inputs).predicted_depth.float()
        while found.ndim < 4:
            found = found[None]
        depth = torch.nn.functional.interpolate(found, image.size[::-1], mode="bicubic", align_corners=False)[0, 0].cpu()
        if self.metric:
            return depth.clamp(min=1e-3).numpy()
        low, high = torch.quantile(depth, torch.tensor([0.02, 0.98])).tolist()
        return (1 - ((depth - low) / max(high - low, 1e-6)).clamp(0, 1)).numpy()
