"""What of a model's configuration decides its maps, for the settings of an output folder."""

from typing import Any

from noise2map.models.decoding import DecodingOptions
from noise2map.runs.files import json_values, settings_checksum

_DECIDING = (
    "auto_log_snr",
    "auto_max_steps",
    "auto_threshold",
    "calibration",
    "churn",
    "feedback",
    "field_level",
    "flip_tolerance",
    "max_depth",
    "min_depth",
    "temperature",
    "time_difference",
    "time_grid",
    "uncertainty",
)
"""Fields that can be changed without a new training; what an option of decoding can choose is among the options, resolved."""


def config_settings(config: Any) -> dict[str, str]:
    """``{"config": checksum}`` of the fields that decide maps and are not at their defaults; nothing where all are.

    Folders of such plain models that were written before there was a checksum go on.

    Args:
        config: The model's `Noise2MapConfig`, or `Noise2MapBevConfig`.
    """
    usual, own = type(config), {name: getattr(config, name, None) for name in _DECIDING}
    chosen = {name: value for name, value in own.items() if value != getattr(usual, name, None)}
    return {"config": settings_checksum(json_values(chosen))} if chosen else {}


def sampling_settings(asked: DecodingOptions, resolved: DecodingOptions, config: Any) -> dict[str, str | None]:
    """How maps are sampled, where another way was asked for than the checkpoint's: else folders of before there were any go on.

    Args:
        asked: What was chosen.
        resolved: The same with the checkpoint's values.
        config: The model's configuration.
    """
    usual = DecodingOptions().resolved(config)
    follows = asked.sampling is None and asked.field_smoothness is None
    if follows or (resolved.sampling, resolved.field_smoothness) == (usual.sampling, usual.field_smoothness):
        return {}
    width = resolved.field_smoothness
    return {"sampling": resolved.sampling, **({} if width is None else {"field_smoothness": format(width, "g")})}
