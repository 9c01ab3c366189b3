"""An official ADM checkpoint -> the folder of a diffusers pipeline, which can be sampled from and guided."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline

from noise2map.convert.adm import LSUN_256_FLAGS, adm_scheduler, load_adm_unet
from noise2map.convert.adm_flags import resolve_flags
from noise2map.convert.checkpoint import find_checkpoint
from noise2map.convert.ddp_folder import check_new_folder
from noise2map.runs.files import write_json, writing_directory

PRESETS: dict[str, dict[str, Any]] = {"lsun-256": LSUN_256_FLAGS, "none": {}}


def convert_adm(checkpoint: str, out: Path, flags: dict[str, Any]) -> str:
    """Convert an official checkpoint into a new folder that appears whole.

    Args:
        checkpoint: A file here, or OWNER/NAME:FILE on the hub.
        out: The folder.
        flags: The official flags of the model and its diffusion process.

    Returns:
        What was made, in one line.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is not one, the flags do not describe it, or ``out`` is there and not an empty folder.
    """
    check_new_folder(out)
    scheduler = adm_scheduler(**flags)
    unet = load_adm_unet(find_checkpoint(checkpoint), **flags)
    report = unet.conversion_report
    with writing_directory(out) as folder:
        DDPMPipeline(unet, scheduler).save_pretrained(folder)
        document = {"source": checkpoint, "flags": resolve_flags(flags), "used": report.used, "dropped": report.dropped}
        write_json(folder / "conversion.json", document)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    size = unet.config.sample_size
    return f"{out}: UNet2DModel of {size} px, {parameters:,} parameters, {report.summary()}"


def read_flags(words: Sequence[str]) -> dict[str, Any]:
    """``["image_size=64", "learn_sigma=True"]`` -> ``{"image_size": 64, "learn_sigma": True}``, names and types as official.

    Raises:
        ValueError: If a word has no ``=``, a flag is unknown or its value is of another type.
    """
    flags: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--flag takes NAME=VALUE, such as num_channels=256, got {word!r}")
        flags[name.removeprefix("--")] = text
    values = resolve_flags(flags)
    return {name: values[name] for name in flags}
