"""Memory estimate of a prediction, checked before it starts: what does not fit is refused and does not kill the process."""

from dataclasses import dataclass, replace

import torch

from noise2map.models import Noise2MapConfig

# Floats alive at the peak, per decoder token and channel: gathered samples (4 corners x points), their product with the
# weights, the feed-forward block. The estimate came out at 1.0 to 1.9 times the measured growth of the process, from 16
# images of 160x120 to one of 1024x1024, for a small ConvNeXt and for Swin-T.
_PER_TOKEN_CHANNEL = 30
# Floats alive in the encoder per pixel of the image: the stem, the first stage and its feed-forward block.
_PER_PIXEL = 60
# Cells that are mixed to a pixel.
_NEIGHBOURS = 9
_SAFE_SHARE = 0.85
OUTPUT_FLOATS = 10
"""For a pixel of an image while its maps are written: image, map, uncertainty, what is drawn of them. 8 were measured."""


@dataclass(frozen=True)
class Workload:
    """One batch.

    Attributes:
        batch_size: Images.
        height: Rows that go into the model.
        width: Columns that go into the model.
        ensemble_size: Noise samples per image.
        output_pixels: Pixels of the largest map that comes out.
        kept_layers: Tensors of the size of the tokens that are kept over a run (`SparseRefinement`).
    """

    batch_size: int
    height: int
    width: int
    ensemble_size: int
    output_pixels: int
    kept_layers: int = 0


def estimate_bytes(config: Noise2MapConfig, work: Workload, element_size: int = 4) -> int:
    """A cautious estimate of the memory a batch takes beyond the weights.

    Args:
        config: The model's configuration.
        work: The batch.
        element_size: Bytes per float.

    Returns:
        Bytes.
    """
    pixels = work.height * work.width
    tokens = pixels / 16 * work.batch_size
    classes = max(int(config.num_labels), 1)
    decoder = tokens * work.ensemble_size * config.hidden_size * (_PER_TOKEN_CHANNEL + work.kept_layers)
    encoder = pixels * work.batch_size * _PER_PIXEL
    logits = 2 * pixels * work.batch_size * classes
    if config.upsampling == "convex":  # every sample's map has all pixels, and each of them nine weights
        logits += pixels * work.batch_size * work.ensemble_size * (2 * _NEIGHBOURS + 4 * classes)
    outputs = work.output_pixels * OUTPUT_FLOATS
    return int(element_size * (max(decoder, encoder) + logits) + 4 * outputs)


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where it cannot be known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        import psutil
    except ImportError:  # it comes with accelerate; without it the check is left out
        return None
    return int(psutil.virtual_memory().available)


def fitting_batch(
    config: Noise2MapConfig, work: Workload, device: torch.device, element_size: int = 4, room: int | None = None
) -> int:
    """The largest batch, at most ``work.batch_size``, that fits in free memory.

    Args:
        config: The model's configuration.
        work: The batch.
        device: Where it is computed.
        element_size: Bytes per float.
        room: The most bytes that it may take; what is free by default.

    Raises:
        ValueError: If not even one image fits.
    """
    free = available_bytes(device)
    if room is not None:
        free = room if free is None else min(room, free)
    if free is None:
        return work.batch_size
    one = replace(work, batch_size=1)
    needed = estimate_bytes(config, one, element_size)
    if needed > free * _SAFE_SHARE:
        raise ValueError(
            f"needs about {needed / 2**30:.1f} GiB to be processed at {work.width}x{work.height} pixels with "
            f"{work.ensemble_size} noise sample(s), {free / 2**30:.1f} GiB are free; choose a smaller size or fewer samples, or "
            "a bound on memory, within which it is processed in tiles"
        )
    return max(1, min(work.batch_size, int(free * _SAFE_SHARE / needed)))
