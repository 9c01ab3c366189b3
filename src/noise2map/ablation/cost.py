"""What a decoder costs: operations counted, not time."""

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


def decoder_gflop(model: Any, features: Tensor, steps: int) -> float:
    """Operations of decoding a map, in units of 1e9: two for each multiplication of matrix products and convolutions.

    The bilinear sampling of deformable attention, norms and activations are not counted, in no decoder.

    Args:
        model: a map model.
        features: of one image ``(1, C, h, w)``.
        steps: decoder calls.
    """
    # Gradients keep the linear layers away from fused operators that the counter does not know.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model.decode_map(features, num_inference_steps=steps)
    return counter.get_total_flops() / 1e9


def training_gflop(model: Any, features: Tensor, labels: Tensor) -> float:
    """Operations of one training step of all but the encoder, in units of 1e9.

    Args:
        model: a map model.
        features: ``(B, C, h, w)``.
        labels: class ids ``(B, H, W)``.
    """
    model = copy.deepcopy(model).train()
    pixels = features.new_zeros(len(features), 3, *labels.shape[-2:])
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(pixels, labels=labels, features=features).loss.backward()
    return counter.get_total_flops() / 1e9


def decoder_parameters(model: Any) -> int:
    """Number of parameters of decoder, head and label encoding."""
    parts = (model.decoder, model.head, model.codec)
    return sum(parameter.numel() for part in parts for parameter in part.parameters() if parameter.requires_grad)
