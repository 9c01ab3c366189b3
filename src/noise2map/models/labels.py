"""What a training step is given: labels, against the shape of the images, and times."""

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
