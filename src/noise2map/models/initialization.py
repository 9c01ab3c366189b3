"""Weight initialisation of the published model, and the base class that transformers loads and saves."""

import logging
import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from noise2map.codecs import FixedCodec
from noise2map.models.configuration import Noise2MapConfig
from noise2map.models.encoder import AuxiliaryHead, ImageEncoder
from noise2map.models.map_decoder import DeformableAttention, MapDecoder, TimeEmbedding
from noise2map.models.upsampling import ConvexUpsampling
from noise2map.zoo import ShippedNames

logger = logging.getLogger(__name__)


class Noise2MapPreTrainedModel(ShippedNames, PreTrainedModel):
    """Weight initialisation and loading, shared by the map models."""

    config_class = Noise2MapConfig
    config: Noise2MapConfig
    base_model_prefix = "noise2map"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers documents it; where the head is made anew, as for other classes, the old one's calibration goes."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        names = [
            str(key[0] if isinstance(key, tuple) else key) for kind in ("missing_keys", "mismatched_keys") for key in info[kind]
        ]
        if model.config.calibration is not None and any(name.startswith("head.") for name in names):
            logger.warning("the head is made anew: the calibration of the checkpoint, which was fitted to its own, is dropped")
            model.config.calibration = None
        return (model, info) if output_loading_info else model

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # In models outside its own package transformers takes a module without weights of its own for initialised already and would
        # pass over attention, decoder and encoder, which initialise their children. The functions of `init` spare loaded weights.
        super()._initialize_weights(module, is_custom_code=False)

    def _init_weights(self, module: nn.Module) -> None:
        # The published model's initialisation; biases that it leaves alone keep torch's default.
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, FixedCodec):
            init.copy_(module.table, module.make_table())  # not in the checkpoint: loading leaves it empty
        elif isinstance(module, DeformableAttention):
            _init_attention(module)
        elif isinstance(module, TimeEmbedding):
            init.normal_(module.frequencies)
            for linear in (module.linear_in, module.linear_out):
                init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        elif isinstance(module, MapDecoder):
            _init_projection(module, self.config.map_projection_gain)
        elif isinstance(module, ConvexUpsampling):
            # Nearly bilinear, so that the first maps of a training are no worse than without it.
            init.normal_(module.weights.weight, std=1e-3)
            init.zeros_(module.weights.bias)
        elif isinstance(module, ImageEncoder):
            init.kaiming_normal_(module.merge.conv.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, AuxiliaryHead):
            init.kaiming_normal_(module.conv.weight, mode="fan_out", nonlinearity="relu")
            init.normal_(module.classifier.weight, std=0.01)
            init.zeros_(module.classifier.bias)


def _init_projection(module: MapDecoder, map_gain: float) -> None:
    """Published, but for the gain of the half through which the noisy map comes in."""
    init.zeros_(module.projection.bias)
    if getattr(module.projection.weight, "_is_hf_initialized", False):
        return  # loaded: loading must not draw from the global generator
    weight = torch.empty_like(module.projection.weight)
    torch.nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    weight[:, module.feature_channels :] *= map_gain
    init.copy_(module.projection.weight, weight)


def _init_attention(module: DeformableAttention) -> None:
    """Offsets start as unit steps in eight directions, longer for each further point; attention starts uniform."""
    heads, points = module.num_heads, module.num_points
    angle = torch.arange(heads, dtype=torch.float32) * (2 * math.pi / heads)
    direction = torch.stack([angle.cos(), angle.sin()], dim=-1)
    direction = direction / direction.abs().max(dim=-1, keepdim=True).values
    steps = torch.arange(1, points + 1, dtype=torch.float32)
    init.zeros_(module.offsets.weight)
    init.copy_(module.offsets.bias, (direction[:, None] * steps[None, :, None]).flatten())
    init.zeros_(module.weights.weight)
    init.zeros_(module.weights.bias)
    init.zeros_(module.value.bias)
    init.zeros_(module.output.bias)
