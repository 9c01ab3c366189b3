"""What a call of a model is checked for before any work: keywords, features, labels against the shape of the images, times."""

from collections.abc import Iterable

from torch import Tensor

# Keywords that transformers' engines pass to any model.
_FOREIGN_KEYWORDS = ("return_dict", "output_attentions", "output_hidden_states", "num_items_in_batch")


def check_label_shape(labels: Tensor, pixel_values: Tensor, *channels: int) -> None:
    """Refuses labels that are not ``(B, H, W)``, or ``(B, *channels, H, W)``, like ``pixel_values`` ``(B, 3, H, W)``.

    Raises:
        ValueError: naming the shape that was given and the one expected.
    """
    if pixel_values.ndim != 4:
        raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; expected (B, 3, H, W)")
    expected = (pixel_values.shape[0], *channels, *pixel_values.shape[-2:])
    if tuple(labels.shape) != expected:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {expected}, like pixel_values")


def check_times(timesteps: Tensor, batch_size: int) -> Tensor:
    """Training times ``(B,)`` as float32 on the CPU, where the schedules are computed.

    Raises:
        ValueError: for another shape, or times outside [0, 1].
    """
    timesteps = timesteps.float().cpu()
    if tuple(timesteps.shape) != (batch_size,):
        raise ValueError(f"timesteps have shape {tuple(timesteps.shape)}; expected ({batch_size},), one for each image")
    if not bool(((timesteps >= 0) & (timesteps <= 1)).all()):
        raise ValueError(f"timesteps hold {timesteps.tolist()}; expected times in [0, 1]")
    return timesteps


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
