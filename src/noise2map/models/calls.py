"""What a call of a model is checked for before any work."""

from collections.abc import Iterable

from torch import Tensor

# Keywords that transformers' engines pass to any model.
_FOREIGN_KEYWORDS = ("return_dict", "output_attentions", "output_hidden_states", "num_items_in_batch")


def check_keywords(model: object, given: Iterable[str]) -> None:
    """Refuses keywords that neither the model knows nor transformers passes to every model.

    Raises:
        ValueError: naming the keyword.
    """
    for name in given:
        if name not in _FOREIGN_KEYWORDS:
            raise ValueError(f"{type(model).__name__} has no argument {name!r}")


def check_features(features: Tensor, pixel_values: Tensor) -> None:
    """Refuses features ``(B, C, h, w)`` that are not of these images ``(B, 3, H, W)``.

    Raises:
        ValueError: naming both shapes.
    """
    quarter = [-(-side // 4) for side in pixel_values.shape[-2:]]
    near = all(abs(found - side) <= 1 for found, side in zip(features.shape[-2:], quarter))  # a backbone may round
    if features.ndim != 4 or len(features) != len(pixel_values) or not near:
        raise ValueError(
            f"features have shape {tuple(features.shape)}; expected those of the images, ({len(pixel_values)}, C, {quarter[0]}, "
            f"{quarter[1]})"
        )
