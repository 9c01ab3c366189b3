"""What a vision model expects of images: size and normalisation, as its files say."""

from typing import Any

from transformers.image_processing_base import ImageProcessingMixin

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def processor_settings(source: str) -> dict[str, Any]:
    """Content of `preprocessor_config.json` of a folder or hub id; empty where there is none."""
    try:
        return ImageProcessingMixin.get_image_processor_dict(source)[0]
    except OSError:
        return {}


def input_size_of(settings: dict[str, Any], side: Any) -> tuple[int, int]:
    """Height and width that a model expects: of its processor (the crop first), else of its configuration, else 224."""
    for key in ("crop_size", "size"):
        size = settings.get(key)
        if isinstance(size, int):
            return size, size
        if isinstance(size, dict) and "height" in size:
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(side, (list, tuple)):
        return int(side[0]), int(side[1])
    return (int(side), int(side)) if side else (224, 224)
