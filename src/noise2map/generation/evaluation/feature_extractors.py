"""Feature extractors of FID and KID by name: shipped encoders, vision backbones of transformers, Inception."""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel

from noise2map.inference.loading import is_map_model, load_model, pick_device
from noise2map.inference.pixels import IMAGENET_MEAN, IMAGENET_STD, input_size_of, processor_settings
from noise2map.metrics import FeatureExtractor
from noise2map.models import MapModel
from noise2map.models.resizing import normalized_pixels
from noise2map.runs.files import weights_checksum
from noise2map.zoo import available, label_of, resolve_model

DEFAULT_EXTRACTOR = "freedoom-segmentation-tiny"

_LAYERS = ("stage1", "stage2", "stage3", "stage4", "merged")

_INCEPTION = "inception"


def make_extractor(spec: str = DEFAULT_EXTRACTOR, device: str | torch.device = "auto") -> FeatureExtractor:
    """A feature extractor by name.

    Args:
        spec: A shipped checkpoint or a folder of one (its image encoder; `NAME:LAYER` chooses stage1 to stage4 or merged, stage4
            by default); a vision model of transformers by folder or hub id; `inception`, or `inception:WEIGHTS_FILE`, for
            torchmetrics' Inception, which needs the package torch-fidelity.
        device: Where to.

    Raises:
        ImportError: If torch-fidelity is needed and not installed.
        OSError: If there is no such model, or it cannot be read.
        ValueError: If the name or the layer is unknown.
    """
    device = pick_device(device) if isinstance(device, str) else device
    name, _, detail = spec.partition(":")
    extractor: FeatureExtractor
    if name == _INCEPTION:
        extractor = InceptionFeatures(detail or None)
    elif is_map_model(name):
        extractor = EncoderFeatures(*load_model(name, device), label_of(name), detail or "stage4")
    elif detail:
        raise ValueError(f"{name!r} is no checkpoint of this library; ':{detail}' chooses the layer of one")
    else:
        extractor = BackboneFeatures.from_pretrained(name)
    return extractor.to(device).eval().requires_grad_(False)


class EncoderFeatures(FeatureExtractor):
    """Mean over the image of a feature map of a map model's image encoder.

    Args:
        model: A map model.
        processor: Its image processor: size and normalisation.
        label: Short name.
        layer: `"stage1"` to `"stage4"` of the backbone, or `"merged"`, what the map decoder gets.

    Raises:
        ValueError: If the layer is unknown.
    """

    def __init__(self, model: MapModel, processor: Any, label: str, layer: str = "stage4") -> None:
        super().__init__()
        if layer not in _LAYERS:
            raise ValueError(f"layer must be one of {', '.join(_LAYERS)}, got {layer!r}")
        self.encoder = model.encoder
        self.layer, self.processor = layer, processor
        channels = list(self.encoder.backbone.channels)
        self.size = model.config.hidden_size if layer == "merged" else channels[_LAYERS.index(layer)]
        self.name = f"{label}:{layer}@{weights_checksum(self.encoder)}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> features `(B, size)`."""
        pixels = self.processor.normalized_batch(images)
        if self.layer == "merged":
            return self.encoder(pixels).mean((2, 3))
        return self.encoder.backbone(pixels).feature_maps[_LAYERS.index(self.layer)].mean((2, 3))


class BackboneFeatures(FeatureExtractor):
    """The pooled output of a vision model of transformers; the mean over its last hidden state where it has none.

    Args:
        model: Takes `pixel_values`.
        label: Short name.
        size: Height and width of its input, pixels.
        mean: Of the normalisation.
        std: Of the normalisation.
    """

    def __init__(self, model: nn.Module, label: str, size: tuple[int, int], mean: Any, std: Any) -> None:
        super().__init__()
        self.model = model.eval()
        self.input_size, self.mean, self.std = size, mean, std
        self.size = self(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape[1]
        self.name = f"{label}@{weights_checksum(model)}"

    @classmethod
    def from_pretrained(cls, name: str) -> "BackboneFeatures":
        """Load a model by folder or hub id; size and normalisation come from its `preprocessor_config.json`.

        Raises:
            OSError: If it is not there or cannot be read.
            ValueError: If it is not a model of images.
        """
        path = Path(name).expanduser()
        if not path.is_dir() and "/" not in name:
            resolve_model(name)  # says what is shipped
        source = str(path) if path.is_dir() else name
        model = AutoModel.from_pretrained(source)
        model = getattr(model, "vision_model", model)  # of models of images and text, the half that looks
        side = getattr(model.config, "image_size", None)
        settings = processor_settings(source)
        size = input_size_of(settings, side)
        mean, std = settings.get("image_mean", IMAGENET_MEAN), settings.get("image_std", IMAGENET_STD)
        if not hasattr(model, "main_input_name") or model.main_input_name != "pixel_values":
            raise ValueError(f"{name!r} is a {type(model).__name__}; expected a model of images")
        return cls(model, label_of(name), size, mean, std)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> features `(B, size)`."""
        out = self.model(pixel_values=normalized_pixels(images, self.input_size, self.mean, self.std))
        pooled = getattr(out, "pooler_output", None)
        if pooled is None:
            hidden = out.last_hidden_state
            pooled = hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.mean(1)
        return pooled.flatten(1)


class InceptionFeatures(FeatureExtractor):
    """The 2048 pooled features of torchmetrics' Inception, those of published FIDs.

    Args:
        weights: A file of its weights; downloaded by torch-fidelity if not given.

    Raises:
        ImportError: If torch-fidelity is not installed.
        FileNotFoundError: If the file is missing.
    """

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ImportError(
                "the extractor 'inception' needs torch-fidelity (pip install torch-fidelity, which brings torchvision); "
                f"shipped and free of both: {', '.join(available())}"
            )
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(f"there is no file {weights} with the weights of Inception")
        from torchmetrics.image.fid import NoTrainInceptionV3

        self.model = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        self.size = 2048
        self.name = f"inception-v3-compat:2048@{weights_checksum(self.model)}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` uint8 -> features `(B, 2048)`."""
        return self.model(images)
