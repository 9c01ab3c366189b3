"""Labels of a batch: their shape against that of the images."""

from torch import Tensor


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
