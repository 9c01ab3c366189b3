"""Official ADM (guided-diffusion) checkpoints -> `diffusers.UNet2DModel`."""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from noise2map.convert.adm_flags import AdmArchitecture, adm_architecture, resolve_flags
from noise2map.convert.adm_keys import convert_adm_state_dict
from noise2map.convert.checkpoint import find_checkpoint, read_checkpoint, strip_wrappers

_FEWEST_LINEAR_STEPS = 20  # its last beta is 20 / steps

LSUN_256_FLAGS: dict[str, Any] = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "attention_resolutions": "32,16,8",
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "learn_sigma": True,
    "dropout": 0.1,
}
"""Flags of the official LSUN bedroom, cat and horse models."""


def load_adm_unet(checkpoint: str | Path | dict[str, Any], **adm_flags: Any) -> UNet2DModel:
    """Loads an official ADM checkpoint as a diffusers U-Net with the same outputs, activations and gradients.

    What `UNet2DModel` cannot represent exactly is refused: several heads (``num_heads``) over attention levels of different
    widths, a time embedding that is wider than the first level (the 512 px models), super-resolution models, a different number
    of heads in the decoder. ``use_fp16`` and ``use_checkpoint`` concern how ADM runs and not what it computes: the U-Net comes
    in float32.

    Args:
        checkpoint: a ``.pt`` or ``.safetensors`` file, a file on the hub (``OWNER/NAME:FILE``), or a state dict with the official
            key names.
        **adm_flags: the official flags, with their official defaults: ``image_size=64, num_channels=128, num_res_blocks=2,
            num_heads=4, num_head_channels=-1, attention_resolutions="16,8", channel_mult="", dropout=0.0, class_cond=False,
            use_scale_shift_norm=True, resblock_updown=False, use_new_attention_order=False, learn_sigma=False ...``. See
            `LSUN_256_FLAGS`. Flags of the diffusion process are accepted here and read by `adm_scheduler`.

    Returns:
        The U-Net in evaluation mode; ``unet.conversion_report`` tells what became of every key. Its output has 6 channels with
        ``learn_sigma``: the noise, then the interpolated log variance.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a flag is unknown or contradicts the weights, a key has no place, or the network cannot be represented.
    """
    architecture = adm_architecture(adm_flags)
    tensors = strip_wrappers(checkpoint) if isinstance(checkpoint, dict) else read_checkpoint(find_checkpoint(checkpoint))
    _check_flags_against_weights(tensors, architecture)
    converted, report = convert_adm_state_dict(tensors, architecture)
    with torch.device("meta"):
        unet = UNet2DModel(**architecture.unet_config())
    _check_shapes(converted, unet)
    # `assign` replaces the meta tensors; clones, so that the U-Net shares nothing with a state dict that was passed in.
    unet.load_state_dict({key: value.clone() for key, value in converted.items()}, strict=True, assign=True)
    unet.conversion_report = report
    return unet.requires_grad_(True).eval()


def adm_scheduler(**adm_flags: Any) -> DDPMScheduler:
    """Scheduler with the diffusion process of the same flags: betas, variance (``learn_sigma``), prediction and clipping.

    ``timestep_spacing="leading"`` gives the time steps of ADM's ``ddimN`` respacings.
    ``DDIMScheduler.from_config(scheduler.config)`` is the deterministic sampler of the same process.

    Raises:
        ValueError: if a flag is unknown or describes a process that the scheduler does not have.
    """
    flags = resolve_flags(adm_flags)
    steps = int(flags["diffusion_steps"])
    if flags["noise_schedule"] not in ("linear", "cosine"):
        raise ValueError(f"noise_schedule is {flags['noise_schedule']!r}; expected 'linear' or 'cosine'")
    if flags["noise_schedule"] == "linear" and steps < _FEWEST_LINEAR_STEPS:
        raise ValueError(
            f"diffusion_steps is {steps}; expected at least {_FEWEST_LINEAR_STEPS} of the linear schedule (betas above 1)"
        )
    if flags["rescale_timesteps"] and steps != 1000:
        raise ValueError(f"rescale_timesteps with diffusion_steps={steps}: the schedulers of diffusers pass time steps on unscaled")
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_start=1e-4 * 1000 / steps,
        beta_end=0.02 * 1000 / steps,
        beta_schedule="linear" if flags["noise_schedule"] == "linear" else "squaredcos_cap_v2",
        variance_type="learned_range" if flags["learn_sigma"] else "fixed_large",
        prediction_type="sample" if flags["predict_xstart"] else "epsilon",
        clip_sample=True,
        timestep_spacing="leading",
    )


def _check_flags_against_weights(tensors: dict[str, Tensor], architecture: AdmArchitecture) -> None:
    """Names the flag that disagrees with the weights, where a shape tells."""
    first, last = tensors.get("input_blocks.0.0.weight"), tensors.get("out.2.weight")
    if first is None or last is None:
        raise ValueError("checkpoint lacks input_blocks.0.0.weight or out.2.weight; expected the state dict of an ADM U-Net")
    if first.ndim != 4:
        raise ValueError(f"input_blocks.0.0.weight has {first.ndim} axes; expected 4, that is a model of images (dims 2)")
    if first.shape[1] != 3:
        raise ValueError(
            f"the first convolution reads {first.shape[1]} channels; expected 3: super-resolution and other models "
            "with extra inputs are not unconditional image models and cannot be guided"
        )
    found: dict[str, tuple[Any, Any]] = {
        "num_channels": (first.shape[0], architecture.widths[0]),
        "learn_sigma": (last.shape[0] == 6, architecture.learn_sigma),
        "class_cond": ("label_emb.weight" in tensors, architecture.class_cond),
    }
    if len(architecture.widths) > 1:
        found["resblock_updown"] = (not any(key.endswith(".0.op.weight") for key in tensors), architecture.resblock_updown)
    if "input_blocks.1.0.emb_layers.1.bias" in tensors:
        scale_shift = tensors["input_blocks.1.0.emb_layers.1.bias"].shape[0] == 2 * architecture.widths[0]
        found["use_scale_shift_norm"] = (scale_shift, architecture.scale_shift)
    for flag, (in_weights, in_flags) in found.items():
        if in_weights != in_flags:
            raise ValueError(f"{flag} is {in_flags}, but the weights are those of a model with {flag}={in_weights}")


def _check_shapes(converted: dict[str, Tensor], unet: UNet2DModel) -> None:
    expected = {key: tuple(value.shape) for key, value in unet.state_dict().items()}
    missing = sorted(set(expected) - set(converted))
    superfluous = sorted(set(converted) - set(expected))
    wrong = [key for key in expected.keys() & converted.keys() if expected[key] != tuple(converted[key].shape)]
    if missing or superfluous:
        raise ValueError(
            f"the weights do not fill the architecture that the flags describe: {len(missing)} tensors are missing "
            f"({', '.join(missing[:3])}), {len(superfluous)} have no place ({', '.join(superfluous[:3])}); check num_res_blocks, "
            "channel_mult and attention_resolutions"
        )
    if wrong:
        key = sorted(wrong, key=lambda name: (math.prod(expected[name]), name))[0]
        raise ValueError(
            f"{key} has shape {tuple(converted[key].shape)}; the flags describe {expected[key]}; "
            "check channel_mult and num_channels"
        )
