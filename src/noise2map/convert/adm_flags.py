"""The flags of official ADM (guided-diffusion) checkpoints, and the architecture that they describe.

An ADM checkpoint is a bare state dict; its architecture lives in the command line that trained it. The names and defaults here are
those of that command line, so that a README's flags can be passed as they are.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "image_size": 64,
    "num_channels": 128,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "channel_mult": "",
    "dropout": 0.0,
    "class_cond": False,
    "use_checkpoint": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "use_fp16": False,
    "use_new_attention_order": False,
    "learn_sigma": False,
    # Of the diffusion process: read by `adm_scheduler`, accepted beside the model's flags.
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "use_kl": False,
    "predict_xstart": False,
    "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}
_CHANNEL_MULT = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}
_GROUPS = 32
_CLASSES = 1000


@dataclass(frozen=True)
class AdmArchitecture:
    """Architecture that the flags resolve to.

    Attributes:
        image_size: side of the images in px.
        widths: channels of each level, finest first.
        attention: which levels have attention.
        num_res_blocks: residual blocks of each level of the encoder (the decoder has one more).
        head_dim: channels of an attention head; None for a single head of full width at every level.
        scale_shift: whether time scales and shifts the second normalisation.
        resblock_updown: whether residual blocks change the resolution, instead of convolutions.
        learn_sigma: whether the output has a second half, the interpolated log variance.
        class_cond: whether there is a table of 1000 class embeddings.
        new_attention_order: layout of the attention's ``qkv`` rows.
        dropout: probability, inactive in evaluation mode.
    """

    image_size: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    num_res_blocks: int
    head_dim: int | None
    scale_shift: bool
    resblock_updown: bool
    learn_sigma: bool
    class_cond: bool
    new_attention_order: bool
    dropout: float

    def unet_config(self) -> dict[str, Any]:
        """Arguments of `diffusers.UNet2DModel` that give the same network."""
        plain_down, plain_up = (
            ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if self.resblock_updown else ("DownBlock2D", "UpBlock2D")
        )
        resample = "resnet" if self.resblock_updown else "conv"
        return {
            "sample_size": self.image_size,
            "in_channels": 3,
            "out_channels": 6 if self.learn_sigma else 3,
            "block_out_channels": self.widths,
            "layers_per_block": self.num_res_blocks,
            "down_block_types": tuple("AttnDownBlock2D" if has else plain_down for has in self.attention),
            "up_block_types": tuple("AttnUpBlock2D" if has else plain_up for has in reversed(self.attention)),
            "downsample_type": resample,
            "upsample_type": resample,
            "downsample_padding": 1,
            "resnet_time_scale_shift": "scale_shift" if self.scale_shift else "default",
            "attention_head_dim": self.head_dim,
            "norm_num_groups": _GROUPS,
            # Left out, the middle attention would lose its normalisation when time scales and shifts.
            "attn_norm_num_groups": _GROUPS,
            "norm_eps": 1e-5,
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "dropout": self.dropout,
            "num_class_embeds": _CLASSES if self.class_cond else None,
        }


def resolve_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """All flags: the given ones over ADM's defaults, in the types of those; ``"True"``, as a command line says it, is true.

    Raises:
        ValueError: for a flag that ADM does not have, with the nearest name, or a value that it cannot have.
    """
    for name in flags:
        if name not in _DEFAULTS:
            near = difflib.get_close_matches(name, _DEFAULTS, 1)
            raise ValueError(
                f"{name!r} is not an ADM flag" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(_DEFAULTS)}")
            )
    values = {**_DEFAULTS, **{name: _typed(name, value) for name, value in flags.items()}}
    for name in ("image_size", "num_channels", "num_res_blocks", "diffusion_steps"):
        if values[name] < 1:
            raise ValueError(f"flag {name} is {values[name]}; expected at least 1")
    if not 0 <= values["dropout"] < 1:
        raise ValueError(f"flag dropout is {values['dropout']}; expected a share of at least 0 and below 1")
    return values


def _typed(name: str, value: Any) -> Any:
    """The value in the type of the flag's default; lists are written with commas or given as sequences.

    Raises:
        ValueError: if it is of another type.
    """
    kind = type(_DEFAULTS[name])
    if kind is str:
        return value
    if kind is bool:
        word = str(value).lower()
        if word not in ("true", "false"):
            raise ValueError(f"flag {name} is True or False, got {value!r}")
        return word == "true"
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError(f"flag {name} is of type {kind.__name__}, got {value!r}")
    return kind(number)


def adm_architecture(flags: Mapping[str, Any]) -> AdmArchitecture:
    """Architecture that ADM builds from its flags.

    Raises:
        ValueError: if a flag is unknown or impossible, or asks for something that `UNet2DModel` cannot represent exactly.
    """
    values = resolve_flags(flags)
    image_size, channels = int(values["image_size"]), int(values["num_channels"])
    mult = _channel_mult(values["channel_mult"], image_size)
    widths = tuple(int(factor * channels) for factor in mult)
    if widths[0] != channels:
        raise ValueError(
            f"channel_mult starts with {mult[0]:g}, so the time embedding has {channels} channels and the first level {widths[0]}; "
            "UNet2DModel has one number for both and cannot represent this checkpoint"
        )
    for width in widths:
        if width <= 0 or width % _GROUPS:
            raise ValueError(
                f"a level has {width} channels (num_channels {channels}, channel_mult {mult}); expected a multiple of {_GROUPS}"
            )
    resolutions = _integers("attention_resolutions", values["attention_resolutions"])
    factors = {image_size // resolution for resolution in resolutions}
    attention = tuple(2**level in factors for level in range(len(widths)))
    return AdmArchitecture(
        image_size=image_size,
        widths=widths,
        attention=attention,
        num_res_blocks=int(values["num_res_blocks"]),
        head_dim=_head_dim(values, widths, attention),
        scale_shift=bool(values["use_scale_shift_norm"]),
        resblock_updown=bool(values["resblock_updown"]),
        learn_sigma=bool(values["learn_sigma"]),
        class_cond=bool(values["class_cond"]),
        new_attention_order=bool(values["use_new_attention_order"]),
        dropout=float(values["dropout"]),
    )


def _head_dim(values: Mapping[str, Any], widths: tuple[int, ...], attention: tuple[bool, ...]) -> int | None:
    """Channels of a head, which UNet2DModel shares between levels; ADM may share the number of heads instead."""
    # The middle block always has attention, at the width of the last level.
    attended = sorted({width for width, has in zip(widths, attention) if has} | {widths[-1]})
    head_dim, heads, heads_up = (int(values[name]) for name in ("num_head_channels", "num_heads", "num_heads_upsample"))
    if head_dim != -1:
        for width in attended:
            if head_dim <= 0 or width % head_dim:
                raise ValueError(f"num_head_channels is {head_dim}; expected a divisor of the attention levels' widths {attended}")
        return head_dim
    if heads_up not in (-1, heads):
        raise ValueError(
            f"num_heads_upsample is {heads_up} and num_heads {heads}; UNet2DModel has one number of heads for both halves"
        )
    if heads == 1:
        return None
    if len(attended) > 1:
        raise ValueError(
            f"num_heads is {heads} with attention at widths {attended}: the heads have "
            f"{[width / heads for width in attended]} channels, and UNet2DModel stores one attention_head_dim for all levels. All "
            "weights would load and the output would be wrong, and a repair of the modules is lost by save_pretrained; only "
            "checkpoints with num_head_channels, one head or one attention width can be converted"
        )
    if heads <= 0 or attended[0] % heads:
        raise ValueError(f"num_heads is {heads}; expected a divisor of the attention width {attended[0]}")
    return attended[0] // heads


def _channel_mult(value: Any, image_size: int) -> tuple[float, ...]:
    if value in ("", None, ()):
        if image_size not in _CHANNEL_MULT:
            raise ValueError(
                f"image_size is {image_size}, for which ADM has no default channel_mult; pass channel_mult such as '1,2,3,4'"
            )
        return _CHANNEL_MULT[image_size]
    parts = value.split(",") if isinstance(value, str) else value
    try:
        mult = tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"channel_mult is {value!r}; expected numbers separated by commas, such as '1,2,3,4'") from error
    if not mult or not all(0 < factor < math.inf for factor in mult):
        raise ValueError(f"channel_mult is {value!r}; expected positive numbers, such as '1,2,3,4'")
    return mult


def _integers(name: str, value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(int(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}; expected whole numbers separated by commas, such as '32,16,8'") from error
    if any(number <= 0 for number in numbers):
        raise ValueError(f"{name} is {value!r}; expected positive numbers")
    return numbers
